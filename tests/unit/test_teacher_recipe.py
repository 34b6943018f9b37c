"""The teacher in a recipe: what is refused, where, and with which words."""

from pathlib import Path

import pytest

from ppe_lora.errors import RecipeError
from ppe_lora.recipe import load_recipe
from ppe_lora.recipe.load import dump_recipe
from ppe_lora.recipe.teachers import NOT_CONTENT, MistralTeacher, OpenAICompatibleTeacher

RECIPE = """\
data:
  name: d
  source:
    kind: generate
    teacher: {teacher}
student: {{model: m}}
"""
WRONG = {
    "{kind: mistal, model: x}": [".kind: expected one of 'scripted', 'mistral', 'openai_compatible'; got 'mistal'"],
    "{model: x}": [".kind: missing; it says which keys this section has"],
    "{kind: mistral}": [".model: missing; the recipe must set it"],
    "{kind: mistral, model: m, mode: bach}": [".mode: expected 'realtime' or 'batch'; got 'bach'"],
    "{kind: mistral, model: m, endpoints: []}": [
        ".endpoints: unknown key; the keys here are model, temperature, max_tokens, timeout_s, limits, prices, budget, "
        "kind, mode"
    ],
    "{kind: mistral, model: m, budget: {requests: 0, tokens: -1}}": [
        f".budget.{name}: expected more than 0; got {limit}; leave it out for no limit, or see the cost without asking "
        "by `ppe-lora data build RECIPE --dry-run`"
        for name, limit in (("requests", 0), ("tokens", -1))
    ],
    "{kind: mistral, model: m, budget: {money: 3}}": [
        ": budget.money needs prices: set prices.prompt and prices.completion, or limit budget.tokens instead"
    ],
    "{kind: mistral, model: m, limits: {request_per_minute: 3, concurrency: 0}}": [
        ".limits.concurrency: expected greater than or equal to 1; got 0",
        ".limits.request_per_minute: unknown key; did you mean 'requests_per_minute'?",
    ],
    "{kind: openai_compatible, model: m}": [".endpoints: missing; the recipe must set it"],
    "{kind: openai_compatible, model: m, endpoints: []}": [
        ".endpoints: expected one or more servers of different url; got none"
    ],
    "{kind: openai_compatible, model: m, endpoints: [{url: http://x}, {url: http://x}]}": [
        ".endpoints: expected one or more servers of different url; got http://x, http://x"
    ],
    "{kind: openai_compatible, model: m, endpoints: [{ulr: http://x}, {url: localhost, weight: 0}]}": [
        ".endpoints.0.url: missing; the recipe must set it",
        ".endpoints.0.ulr: unknown key; did you mean 'url'?",
        ".endpoints.1.url: expected an address such as http://localhost:8000/v1; got 'localhost'",
        ".endpoints.1.weight: expected greater than 0; got 0",
    ],
}


def load(folder: Path, teacher: str, *overrides: str):  # type: ignore[no-untyped-def]
    (folder / "r.yaml").write_text(RECIPE.format(teacher=teacher))
    return load_recipe(folder / "r.yaml", overrides)


@pytest.mark.parametrize("teacher", WRONG)
def test_a_wrong_teacher_is_named_with_its_line(tmp_path: Path, teacher: str) -> None:
    """A setting that is misread costs money before it is noticed."""
    with pytest.raises(RecipeError) as error:
        load(tmp_path, teacher)
    at = f"{tmp_path / 'r.yaml'}:5: data.source.teacher"
    assert str(error.value).splitlines() == [at + message for message in WRONG[teacher]]


def test_an_error_in_a_list_has_the_line_of_its_item(tmp_path: Path) -> None:
    """With ten servers, the line of the list does not help."""
    teacher = (
        "\n      kind: openai_compatible\n      model: m\n      endpoints:\n      - {url: http://x}\n      - {wight: 2}"
    )
    with pytest.raises(RecipeError) as error:
        load(tmp_path, teacher)
    assert str(error.value).splitlines() == [
        f"{tmp_path / 'r.yaml'}:10: data.source.teacher.endpoints.1.url: missing; the recipe must set it",
        f"{tmp_path / 'r.yaml'}:10: data.source.teacher.endpoints.1.wight: unknown key; did you mean 'weight'?",
    ]


def test_another_kind_replaces_the_teacher_of_the_extended_recipe(tmp_path: Path) -> None:
    """Merged key by key, the phrase book's noise would be an unknown key of the language model."""
    (tmp_path / "base.yaml").write_text(RECIPE.format(teacher="{kind: scripted, noise: 2.0}"))
    (tmp_path / "r.yaml").write_text(
        "extends: base.yaml\ndata: {source: {kind: generate, teacher: {kind: mistral, model: m}}}\n"
    )
    recipe = load_recipe(tmp_path / "r.yaml", ["data.source.teacher.temperature=0.5"])
    assert recipe.data.source.teacher == MistralTeacher(kind="mistral", model="m", temperature=0.5)


def test_the_dumped_recipe_loads_to_an_equal_one(tmp_path: Path) -> None:
    """A run's config.yaml that does not load cannot be repeated."""
    recipe = load(tmp_path, "{kind: openai_compatible, model: m, endpoints: [{url: http://x, weight: 2}]}")
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "r.yaml") == recipe


def test_what_is_not_content_is_a_key_of_some_teacher() -> None:
    """A renamed key would silently make every data set again."""
    assert MistralTeacher.model_fields.keys() | OpenAICompatibleTeacher.model_fields.keys() >= NOT_CONTENT
