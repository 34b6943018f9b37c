"""Recipes: strict, with every problem reported at once and at its place."""

from pathlib import Path

import pytest

from ppe_lora.errors import RecipeError
from ppe_lora.recipe import load_recipe
from ppe_lora.recipe.load import decisive_values, differing_keys, dump_recipe, is_decisive

GOOD = """\
data:
  name: d
student:
  model: smollm2-135m
train:
  learning_rate: 2e-4
"""


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return str(error.value).splitlines()


def test_defaults_name_and_scientific_numbers(tmp_path):
    """YAML 1.1 readers take 2e-4 for a string."""
    recipe = load_recipe(write(tmp_path, GOOD, "my_run.yaml"))
    assert (recipe.name, recipe.train.learning_rate, recipe.student.lora.rank) == ("my_run", 2e-4, 16)


def test_all_problems_come_at_once_with_their_lines(tmp_path):
    """A user who mends one error should not meet the next only then."""
    bad = GOOD.replace("learning_rate: 2e-4", "learning_rat: 2e-4\n  epochs: three\n  warmup: 2")
    path = write(tmp_path, bad)
    assert problems(path, "student.lora.rnk=4", "evaluate.gate") == [
        "evaluate.gate: expected an override of the form train.epochs=5",
        "student.lora.rnk=4: student.lora.rnk: unknown key; did you mean 'rank'?",
        f"{path}:7: train.epochs: expected a valid integer; got 'three'",
        f"{path}:8: train.warmup: expected less than or equal to 1; got 2",
        f"{path}:6: train.learning_rat: unknown key; did you mean 'learning_rate'?",
    ]


def test_a_missing_key_is_named_where_it_belongs(tmp_path):
    path = write(tmp_path, "data: {name: d}\nstudent:\n  quantization: nf4\n")
    assert problems(path) == [f"{path}:2: student.model: missing; the recipe must set it"]


def test_scores_that_nothing_would_teach_are_refused(tmp_path):
    """The text's cross-entropy never sees a score alone behind the request; reading it there would be noise."""
    path = write(tmp_path, GOOD)
    assert problems(path, "train.objective.slots=request", "train.objective.head=1") == [
        "train.objective.slots=request: train.objective: slots: request needs raft, crps or legal above 0: "
        "the text alone does not teach it"
    ]
    load_recipe(path, ["train.objective.slots=request", "train.objective.legal=0.1"])


def test_a_repeated_key_is_an_error(tmp_path):
    """PyYAML would silently let the later one win."""
    path = write(tmp_path, GOOD + "train:\n  epochs: 9\n")
    assert problems(path)[0].startswith(f"{path}:7: found duplicate key")


def test_a_control_character_is_named_with_its_line(tmp_path):
    """It ended in a traceback: this error of the YAML reader has no mark."""
    path = write(tmp_path, GOOD + "seed: \x071\n")
    assert problems(path) == [f"{path}:7: expected printable text; got the control character U+0007; delete it"]
    assert problems(write(tmp_path, GOOD), "seed=\x071") == ["seed=\x071: the value is not YAML"]


@pytest.mark.parametrize(
    ("line", "key", "tag"),
    [
        ("task: !!python/object/apply:os.system ['echo hi']", "task", "!!python/object/apply:os.system"),
        ("seed: !foo 1", "seed", "!foo"),
        ("seed: ! 1", "seed", "!"),
        ("evaluate: {gate: !!float 1}", "evaluate.gate", "!!float"),
        ("export: {engines: [vllm, !foo gguf]}", "export.engines.1", "!foo"),
    ],
)
def test_tags_are_refused(tmp_path, line, key, tag):
    """They ended in a TypeError, or went unread: `model: !foo x` was the model x."""
    path = write(tmp_path, GOOD + line + "\n")
    assert problems(path) == [f"{path}:7: {key}: tags such as {tag} are not read in recipes; delete it"]
    assert problems(write(tmp_path, GOOD), f"{key}=!foo x") == [
        f"{key}=!foo x: {key}: tags such as !foo are not read in recipes; delete it"
    ]


def test_an_alias_of_what_it_stands_in_is_refused(tmp_path):
    """It ended in a RecursionError. Other aliases are plain data."""
    path = write(tmp_path, GOOD + "task: &t\n  keys: [a, *t]\n")
    loop = "expected an alias of another place; got *t inside &t; delete it"
    assert problems(path) == [f"{path}:8: task.keys.1: {loop}"]
    assert problems(write(tmp_path, GOOD), "task.keys=&t [*t]") == [f"task.keys=&t [*t]: task.keys.0: {loop}"]
    more = "student: {model: m, quantization: &k nf4}\nexport: &e {quantize: *k, max_loss: 0.1}\ntrack: {<<: *e}\n"
    path = write(tmp_path, "data: {name: d}\n" + more)
    assert problems(path) == [
        f"{path}:4: track.quantize: unknown key; the keys here are mode, wandb, weave",
        f"{path}:4: track.max_loss: unknown key; the keys here are mode, wandb, weave",
    ]
    assert load_recipe(path, ["track={}"]).export.quantize == "nf4"


@pytest.mark.parametrize("wording", ["Answer like {a: 1}", "{keys} {0}", "{", "{keys.first}", "{low[0]}"])
def test_an_instruction_with_braces_of_its_own_is_refused(tmp_path, wording):
    """It ended in a KeyError, minutes later, at the first prompt."""
    path = write(tmp_path, GOOD + f"task: {{instruction: {{en: '{wording}'}}}}\n")
    assert problems(path) == [
        f"{path}:7: task: instruction.en: expected no braces but {{keys}}, {{low}} and {{high}}; got {wording!r}; "
        "write literal braces as {{ and }}"
    ]
    path = write(tmp_path, GOOD + "task: {instruction: {en: 'Answer like {{a: 1}}'}}\n")
    assert load_recipe(path).task.instruction_text("en") == "Answer like {a: 1}"


def test_extends_merges_sections_and_replaces_mappings(tmp_path):
    """Free mappings such as languages are replaced: merged, `{en: 1}` over a Japanese base would stay bilingual."""
    write(tmp_path, GOOD + "evaluate: {gate: 0.9, batch_rows: 4}\n", "base.yaml")
    child = "extends: base.yaml\nevaluate: {gate: 0.8}\ndata: {source: {kind: generate, languages: {en: 1.0}}}\n"
    recipe = load_recipe(write(tmp_path, child))
    assert (recipe.evaluate.gate, recipe.evaluate.batch_rows, recipe.data.name) == (0.8, 4, "d")
    assert recipe.data.source.languages == {"en": 1.0}


def test_extends_keeps_the_caps_inside_a_teacher(tmp_path):
    """A teacher's keys are those of its kind: taken for the phrase book's, its caps on money and rate were dropped."""
    teacher = "{kind: mistral, model: m, prices: {prompt: 1}, budget: {money: 5}, limits: {requests_per_minute: 10}}"
    write(
        tmp_path,
        f"data: {{name: d, source: {{kind: generate, teacher: {teacher}}}}}\nstudent: {{model: m}}\n",
        "b.yaml",
    )
    more = "{budget: {requests: 100000}, limits: {concurrency: 8}}"
    recipe = load_recipe(write(tmp_path, f"extends: b.yaml\ndata: {{source: {{teacher: {more}}}}}\n"))
    kept = recipe.data.source.teacher
    assert (kept.budget.money, kept.budget.requests) == (5, 100000)
    assert (kept.limits.requests_per_minute, kept.limits.concurrency) == (10, 8)
    other = "{kind: openai_compatible, model: o, endpoints: [{url: 'http://h'}]}"
    recipe = load_recipe(write(tmp_path, f"extends: b.yaml\ndata: {{source: {{teacher: {other}}}}}\n"))
    assert recipe.data.source.teacher.budget.money is None  # another kind is another teacher


def test_a_kind_that_is_not_named_is_the_default(tmp_path):
    """`data.source.rows=300` on a recipe without data.source was refused: kind missing."""
    path = write(tmp_path, GOOD)
    source = load_recipe(path, ["data.source.rows=300", "data.source.teacher.noise=2"]).data.source
    assert (source.kind, source.rows, source.teacher.kind, source.teacher.noise) == ("generate", 300, "scripted", 2)
    assert problems(path, "data.source.row=300") == [
        "data.source.row=300: data.source.row: unknown key; did you mean 'rows'?"
    ]
    assert problems(path, "data.source={source_dir: d}") == [
        "data.source={source_dir: d}: data.source.kind: missing; it says which keys this section has"
    ]
    child = write(tmp_path, "extends: r.yaml\ndata: {source: {kind: generate, context: 0.5}}\n", "child.yaml")
    write(tmp_path, GOOD.replace("name: d", "name: d\n  source: {rows: 300}"))
    assert (load_recipe(child).data.source.rows, load_recipe(child).data.source.context) == (300, 0.5)


def test_extends_is_one_level(tmp_path):
    write(tmp_path, GOOD, "a.yaml")
    write(tmp_path, "extends: a.yaml\n", "b.yaml")
    path = write(tmp_path, "seed: 1\nextends: b.yaml\n", "c.yaml")
    assert problems(path) == [
        f"{path}:2: extends: {tmp_path / 'b.yaml'} extends another recipe itself; only one level is allowed"
    ]


def test_a_missing_recipe_is_said_plainly(tmp_path):
    path = tmp_path / "none.yaml"
    assert problems(path) == [f"{path}: no such recipe; the shipped ones are in recipes/"]


def test_what_was_meant_by_a_name_is_said(tmp_path, monkeypatch):
    """`ppe-lora train demo` is what one types first."""
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    write(Path("recipes"), GOOD, "demo.yaml")
    for name in ("demo", "demo.yaml"):
        assert problems(Path(name)) == [f"{name}: no such recipe; did you mean recipes/demo.yaml?"]
    assert problems(Path("recipes")) == [
        "recipes: expected a recipe file; got a folder; name one of its files, or ppe-lora sweep recipes"
    ]
    assert problems(Path("recipes/demo.yaml/x")) == [
        "recipes/demo.yaml/x: expected folders on the way to it; got Not a directory; a file has the name of one; move "
        "that file, or choose another name"
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"- a\n- b\n", "1: expected a mapping of recipe sections; got a list"),
        (b"# later\n", "1: expected a mapping of recipe sections; got an empty file"),
        (b"hello\n", "1: expected a mapping of recipe sections; got 'hello'"),
        ("data:\n  name: café\n".encode("latin-1"), "2: expected UTF-8; save the file as UTF-8"),
        (GOOD.encode("utf-16"), "1: expected UTF-8; save the file as UTF-8"),
    ],
)
def test_a_file_that_is_no_recipe_is_described(tmp_path, content, problem):
    """CommentedSeq, NoneType and 'utf-8' codec are words of the program."""
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    assert problems(path) == [f"{path}:{problem}"]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("data.source.languages={fr: 1}", "data.source.languages.fr: expected the key 'en' or 'ja'; got 'fr'"),
        ("data.source.languages={}", "data.source.languages: expected at least 1 item; got {}"),
        (
            "name=a/b",
            "name: expected letters without accents, digits, `_`, `.` and `-`, a letter or digit first, no `.` last, "
            "at most 100, and no device of Windows (con, nul, com1); got 'a/b'",
        ),
        (
            "data.name=A",
            "data.name: expected small letters without accents, digits, `_`, `.` and `-`, a letter or digit first, no "
            "`.` last, at most 100, and no device of Windows (con, nul, com1); got 'A'",
        ),
        ("task.kind=", "task.kind: expected 'scores'; got nothing"),
        ("track.wandb={project: ''}", "track.wandb.project: expected at least 1 character; got ''"),
    ],
)
def test_a_wrong_value_is_explained_without_the_program_s_words(tmp_path, override, problem):
    """The pattern and the default factory are the program's; of languages, the weight was shown and not the name."""
    assert problems(write(tmp_path, GOOD), override) == [f"{override}: {problem}"]


def test_an_error_in_the_extended_file_points_there(tmp_path):
    base = write(tmp_path, GOOD + "seed: x\n", "base.yaml")
    assert problems(write(tmp_path, "extends: base.yaml\n")) == [f"{base}:7: seed: expected a valid integer; got 'x'"]


def test_import_must_map_exactly_the_keys(tmp_path):
    source = "{kind: import, source_dir: x, files: {f: {path: f.csv}}, request: f.t, target: {energy: f.e}}"
    path = write(tmp_path, f"data:\n  name: d\n  source: {source}\nstudent: {{model: m}}\n")
    assert problems(path) == [
        f"{path}:3: data.source.target must map exactly the task's keys; differing: acousticness, brightness, "
        "complexity, nostalgia, warmth"
    ]


def test_what_several_keys_make_together_is_shown_where_one_of_them_is_written(tmp_path):
    """The first line of a recipe was blamed, or the section around; where an override was the cause, the file."""
    multiple = "train.rows_per_step must be a multiple of rows_per_micro_step; got"
    base = write(tmp_path, GOOD + "  rows_per_step: 16\n  rows_per_micro_step: 4\n", "base.yaml")
    for child in ("rows_per_step: 18", "rows_per_micro_step: 5"):
        path = write(tmp_path, f"extends: base.yaml\nseed: 1\ntrain:\n  epochs: 1\n  {child}\n")
        assert problems(path)[0].startswith(f"{path}:5: {multiple} ")
    assert problems(base, "seed=1", "train.rows_per_micro_step=5") == [
        f"train.rows_per_micro_step=5: {multiple} 16 and 5"
    ]
    assert problems(base, "train={rows_per_micro_step: 5}") == [
        f"train={{rows_per_micro_step: 5}}: {multiple} 16 and 5"
    ]
    decay = (
        "train: learning_rate x weight_decay must be below 1, as each step takes that share of the adapter away; got"
    )
    assert problems(base, "train.weight_decay=1e4") == [f"train.weight_decay=1e4: {decay} 0.0002 x 10000"]
    range_of = "task: low must be below high; got low 0, high -1"
    assert problems(base, "task.high=-1") == [f"task.high=-1: {range_of}"]
    assert problems(write(tmp_path, GOOD + "task:\n  keys: [a]\n  high: -1\n")) == [f"{tmp_path}/r.yaml:9: {range_of}"]
    reader = "data: filters.relabel needs a language model, and the row teacher is none; name one in filters.relabel."
    assert problems(base, "data.filters.relabel={}") == [f"data.filters.relabel={{}}: {reader}teacher"]


def test_an_override_is_named_where_nothing_else_is_written(tmp_path):
    path = write(tmp_path, GOOD)
    assert [line.partition(": ")[0] for line in problems(path, "seed=2", "data.source.kind=import")] == [
        "data.source.kind=import"
    ] * 4
    wrong = "train={learning_rate: x}"  # the file has that key, too
    assert problems(path, wrong, "seed=2") == [f"{wrong}: train.learning_rate: expected a valid number; got 'x'"]
    assert problems(path, "train..epochs=3", ".seed=1", "=1") == [
        f"{wrong}: expected an override of the form train.epochs=5" for wrong in ("train..epochs=3", ".seed=1", "=1")
    ]


def test_the_dumped_recipe_loads_to_an_equal_one(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD, "same.yaml"), ["student.lora.targets=[q_proj, v_proj]"])
    assert load_recipe(write(tmp_path, dump_recipe(recipe), "other.yaml")) == recipe


def test_differing_keys_are_dotted(tmp_path):
    path = write(tmp_path, GOOD)
    assert differing_keys(load_recipe(path), load_recipe(path, ["student.lora.rank=4"])) == ["student.lora.rank"]


def test_tracking_may_start_while_a_training_goes_on(tmp_path):
    """A resume with W&B turned on continues the same experiment; one with another rank does not."""
    path = write(tmp_path, GOOD)
    plain, tracked = load_recipe(path), load_recipe(path, ["track.wandb.project=p", "train.checkpoint_minutes=1"])
    assert differing_keys(plain, tracked)
    assert not [key for key in differing_keys(plain, tracked) if is_decisive(key)]
    assert decisive_values(plain) == decisive_values(tracked)
    other = load_recipe(path, ["student.lora.rank=4"])
    assert [key for key in differing_keys(plain, other) if is_decisive(key)] == ["student.lora.rank"]
    assert decisive_values(plain) != decisive_values(other)
