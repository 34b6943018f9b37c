"""The teacher's prompt: examples that are good themselves, rows that vary, answers that are read without guessing."""

import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppe_lora.corpus.asks import make_asks
from ppe_lora.corpus.filters import filter_rows
from ppe_lora.corpus.rows import Row
from ppe_lora.corpus.teachers.llm.prompt import (
    EXAMPLE_KEYS,
    Prompter,
    load_prompt,
    prompt_version,
    read_request,
)
from ppe_lora.recipe.schema import Filters, GenerateSource
from ppe_lora.tasks.scores import Language, ScoresTask
from tests.unit.test_corpus_teacher import JAPANESE_NAMES

TASK = ScoresTask()
LANGUAGES: tuple[Language, ...] = ("en", "ja")


def examples(language: Language) -> list[Row]:
    prompt = load_prompt(language)
    return [
        Row(
            id=f"{style} {number}",
            request=example.request,
            target=dict(zip(EXAMPLE_KEYS, example.scores, strict=True)),
            language=language,
            style=style,
        )
        for style, pool in prompt.examples.items()
        for number, example in enumerate(pool)
    ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_examples_pass_every_filter(language: Language) -> None:
    """A model copies what it is shown: an example with a key name or a number teaches it to leak."""
    filtered = filter_rows(examples(language), TASK, Filters())
    assert [(rejection.row.request, rejection.evidence) for rejection in filtered.rejected] == []
    assert [row.request for row in filtered.kept if re.search(JAPANESE_NAMES, row.request)] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_examples_cover_every_key_from_low_to_high(language: Language) -> None:
    """Examples that are all quiet and cosy would pull every text there."""
    for key in TASK.keys:
        values = [row.target[key] for row in examples(language)]
        assert sum(value <= 25 for value in values) >= 4, key
        assert sum(value >= 70 for value in values) >= 4, key
    assert Counter(row.style for row in examples(language)) == dict.fromkeys(("polite", "casual", "short", "long"), 8)


def test_both_languages_have_the_same_parts() -> None:
    """A grade or a style that one language lacks fails in the middle of a paid run, or shifts every grade."""
    en, ja = load_prompt("en"), load_prompt("ja")
    assert [row.target for row in examples("en")] == [row.target for row in examples("ja")]
    assert len(en.grades) == len(ja.grades) == len(set(en.grades)) == len(set(ja.grades)) == 7
    assert en.styles.keys() == ja.styles.keys()
    assert (len(en.personas), len(en.manners)) == (len(ja.personas), len(ja.manners))


def test_grades_split_the_range_evenly() -> None:
    """Sevenths of 0 to 100 by hand: 14 is in the lowest, 15 in the next, 50 in the middle, 86 in the highest."""
    task = ScoresTask(keys=("a", "b", "c", "d", "e"))
    ask = make_asks(task, GenerateSource(rows=1, languages={"en": 1}), 0)[0][0]
    target = dict(zip(task.keys, (14, 15, 50, 86, 100), strict=True))
    shown = Prompter(task, 0).brief(ask._replace(target=target)).messages[-1]["content"]
    assert sorted(re.findall(r"- (\w): (\d+) \((.+)\)", shown)) == [
        ("a", "14", "extremely low"),
        ("b", "15", "very low"),
        ("c", "50", "middling"),
        ("d", "86", "extremely high"),
        ("e", "100", "extremely high"),
    ]


def test_rows_vary_in_what_they_are_shown() -> None:
    """The same examples in every prompt make the texts converge."""
    asks = [ask for ask, _ in make_asks(TASK, GenerateSource(rows=400, languages={"en": 1}), 0)]
    briefs = [Prompter(TASK, 0).brief(ask) for ask in asks]
    shown = {tuple(turn["content"] for turn in brief.messages[1:-1]) for brief in briefs}
    assert len(shown) > 300
    used = Counter(turn["content"] for brief in briefs for turn in brief.messages if turn["role"] == "assistant")
    assert len(used) == 32
    assert max(used.values()) < 4 * min(used.values())
    assert len({brief.seed for brief in briefs}) == 400
    for words in (load_prompt("en").personas, load_prompt("en").manners):
        named = Counter(word for brief in briefs for word in words if word in brief.messages[-1]["content"])
        assert named.keys() == set(words)


def test_a_prompt_depends_on_the_seed_and_the_row_only() -> None:
    """Prompts that depend on the order of asking would be asked again after every restart."""
    asks = [ask for ask, _ in make_asks(TASK, GenerateSource(rows=30), 4)]
    prompter = Prompter(TASK, 4)
    forwards = [prompter.brief(ask) for ask in asks]
    assert forwards == [Prompter(TASK, 4).brief(ask) for ask in reversed(asks)][::-1]
    assert forwards != [Prompter(TASK, 5).brief(ask) for ask in asks]
    assert re.fullmatch(r"v1-[0-9a-f]{16}", prompt_version())


def test_occasions_agree_with_the_context_and_become_tags() -> None:
    """A rainy night asked for on a sunny morning makes the context worthless."""
    source = GenerateSource(rows=300, languages={"en": 1}, context=1.0)
    for ask, _ in make_asks(TASK, source, 1):
        brief = Prompter(TASK, 1).brief(ask)
        assert ask.context
        if "weather" in ask.context and "rainy" in brief.scenario:
            assert ask.context["weather"] == "rain"
        for name, text in ask.context.items():
            assert f"{name}={text}" in brief.messages[-1]["content"]


def test_key_names_and_aliases_are_forbidden_in_both_languages() -> None:
    """A Japanese text may name an English key, and the other way round."""
    task = ScoresTask(keys=("inner_tension",), aliases={"inner_tension": {"ja": ("緊張",), "en": ("stress",)}})
    for language in LANGUAGES:
        ask = make_asks(task, GenerateSource(rows=1, languages={language: 1}), 0)[0][0]
        assert "inner tension, 緊張, stress" in Prompter(task, 0).brief(ask).messages[0]["content"]


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ('{"request": "雨の曲"}', "雨の曲"),
        ('```json\n{"request": " a {soft} song "}\n```', "a {soft} song"),
        ('Sure! {"request": "a song"}', "a song"),
        ('{"request": ""}', None),
        ('{"request": 3}', None),
        ('{"requests": "a song"}', None),
        ('{"request": "a song"', None),
        ('{"request": "a"} {"request": "b"}', "b"),
        ('{"request": "a", "request": "b"}', None),
        ('{"request": "a"} {"requests": "b"}', None),
        ("a song", None),
        ('["a song"]', None),
        ("", None),
    ],
)
def test_answers_are_read_or_refused(text: str, request_: str | None) -> None:
    """Guessing at a broken answer puts half sentences and chatter into the data."""
    assert read_request(text) == request_


@given(st.text(min_size=1).filter(str.strip))
def test_any_request_survives_its_json(text: str) -> None:
    """Quotes, braces and line breaks are ordinary in requests."""
    assert read_request(json.dumps({"request": text})) == text.strip()
    assert read_request("Here:\n" + json.dumps({"request": text}, ensure_ascii=False)) == text.strip()


@given(st.text())
def test_no_answer_makes_the_reader_fail(text: str) -> None:
    """An exception here would stop a build at its last step, after all the money was spent."""
    found = read_request(text)
    assert found is None or found.strip() == found != ""
