"""Recipes that somebody made to stop the reader, or that are no recipes at all: refused at once, in words."""

import os
import shutil
import time
from pathlib import Path

import pytest

from ppe_lora.errors import RecipeError
from ppe_lora.recipe import load_recipe
from ppe_lora.recipe.document import MOST_BYTES

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]\n" for below, name in zip("abcdefghi", "bcdefghij", strict=True)
)
"""Ten lines that stand for a billion values."""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "5: e.1: expected at most 20,000 values, aliases written out; got more"),
        ("{a: " * 3000 + "1" + "}" * 3000, "1: a.a.a: expected at most 32 levels; got more"),
        ("\n".join(" " * level + "a:" for level in range(40)), "32: a.a.a: expected at most 32 levels; got more"),
        ("[" * 30_000, "1: 0.0.0: expected at most 32 levels; got more"),
        (
            "a: &a {" + ", ".join(f"k{key}: 1" for key in range(100)) + "}\n"
            + "".join(f"m{key}:\n  <<: *a\n" for key in range(300)),
            "195: m96.<<: expected at most 20,000 values, aliases written out; got more",
        ),
        (
            "name: x\nseed: 2001-13-45\n",
            "2: expected a value; got what cannot be one (month must be in 1..12); correct it, or put it in quotes",
        ),
        (
            "name: x\nseed: 0x_\nother: 1\n",
            "2: expected a value; got what cannot be one (string index out of range); correct it, or put it in quotes",
        ),
        (
            'name: "\\UFFFFFFFF"\n',
            "1: expected a value; got what cannot be one (Python int too large to convert to C int); correct it, or "
            "put it in quotes",
        ),
    ],
    ids=["alias bomb", "flow mappings", "block mappings", "lists", "merge keys", "date", "hexadecimal", "escape"],
)  # fmt: skip
def test_a_hostile_recipe_is_refused_with_its_line(text, problem, tmp_path):
    """An alias bomb had no answer in 45 s, 3,000 nested keys were a RecursionError, a bad date a ValueError."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert str(error.value) == f"{path}:{problem}"


def test_extending_a_hostile_recipe_is_refused(tmp_path):
    (tmp_path / "bomb.yaml").write_text(BOMB)
    (tmp_path / "recipe.yaml").write_text("extends: bomb.yaml\n")
    with pytest.raises(RecipeError, match=r"bomb\.yaml:5: e\.1: expected at most 20,000 values"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (
            "data=" + "{a: " * 100 + "1" + "}" * 100,
            "data={a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: ...: data.a.a: expected at "
            "most 32 levels; got more",
        ),
        (".".join("a" * 3000) + "=1", "a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a..."
         ": expected an override of the form train.epochs=5"),
        ("seed=2001-13-45", "seed=2001-13-45: expected a value; got what cannot be one (month must be in 1..12); "
         "correct it, or put it in quotes"),
        ("name=" + "x" * MOST_BYTES + "x", "name=" + "x" * 72 + "...: name: expected at most 200,000 characters; got "
         "200,001"),
    ],
    ids=["nested value", "nested key", "date", "long"],
)  # fmt: skip
def test_a_hostile_override_is_refused(override, problem):
    with pytest.raises(RecipeError) as error:
        load_recipe(DEMO, [override])
    assert str(error.value) == problem


def test_a_large_file_is_refused_unread(tmp_path):
    """A data file given for a recipe was read by the YAML reader for minutes."""
    path = tmp_path / "recipe.yaml"
    path.write_text("# x\n" * MOST_BYTES)
    started = time.monotonic()
    with pytest.raises(RecipeError, match=r"expected a recipe of at most 200,000 bytes; got 800,000$"):
        load_recipe(path)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "long"])
def test_what_is_no_file_is_refused(kind, tmp_path):
    """A pipe was waited for without end, a device read until the memory was full."""
    path = tmp_path / "recipe.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    else:
        path = tmp_path / ("r" * 300)
    expected = {
        "pipe": "expected a file; got a pipe; write its content into a file, and name that one",
        "device": "expected a file; got a device; write its content into a file, and name that one",
        "folder": f"expected a recipe file; got a folder; name one of its files, or ppe-lora sweep {path}",
        "loop": "expected a path that ends; got Too many levels of symbolic links; symbolic links lead in a circle; "
        "mend them",
        "long": "expected a shorter name; got File name too long; choose a shorter name or folder",
    }[kind]
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert str(error.value) == f"{path}: {expected}"


@pytest.mark.parametrize("name", ["..", "/x", "a/b", "CON", "nul.txt", "a.", "", "x" * 101, "-x", "あ"])
@pytest.mark.parametrize("key", ["name", "data.name"])
def test_a_name_that_is_no_folder_everywhere_is_refused(key, name):
    """A run of 300 letters ended in "File name too long" after its start, one named `con` could not be copied."""
    with pytest.raises(RecipeError, match=r"at most 100, and no device of Windows \(con, nul, com1\); got "):
        load_recipe(DEMO, [f'{key}="{name}"'])
    assert load_recipe(DEMO, [f"{key}={'x' * 100}"])


def test_recipes_at_odd_places_load(tmp_path):
    """Blanks, quotes, brackets, line ends and Japanese in a path are no reason to fail."""
    for name in ("a b", "日本語", "[bold]", "a'b\"c", "a\nb", "-x"):
        (tmp_path / name).mkdir()
        shutil.copy(DEMO, tmp_path / name / "recipe.yaml")
        assert load_recipe(tmp_path / name / "recipe.yaml").name == "recipe"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ('train={"epochs": 1, "epochs": 2}', 'found duplicate key "epochs"'),
        ('data.source.split_names={1: train, "1": valid}', 'found duplicate key "1"'),
        ("train.epochs=1_0", "train.epochs: expected a number without `_`, or a text in quotes; got 1_0"),
        ("train.learning_rate=1_0.5e-1", "train.learning_rate: expected a number without `_`, or a text in quotes; got "
                                         "1_0.5e-1"),
        ("data.name=2026_11_30", "data.name: expected a number without `_`, or a text in quotes; got 2026_11_30"),
        ('student.model="\\ud800"', "student.model: a text holds half of a character (the lone surrogate U+D800)"),
        ('task.instruction.en="a\\0b"', "task.instruction.en: a text holds the control character U+0000"),
    ],
)  # fmt: skip
def test_what_is_read_in_two_ways_is_refused(override, problem):
    """`1_0` was 10 epochs; of a key written twice, once in quotes, the last won."""
    with pytest.raises(RecipeError) as error:
        load_recipe(DEMO, [override])
    assert str(error.value) == f"{override}: {problem}"
