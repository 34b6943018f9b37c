"""Imports: joined by id, rescaled by hand-checked arithmetic, and errors that name file, line and remedy."""

from pathlib import Path
from typing import Any

import pytest

from ppe_lora.corpus.build import build_dataset
from ppe_lora.corpus.importers import read_import
from ppe_lora.corpus.rows import read_rows, split_path, targets_matrix
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import ImportSource, Recipe
from ppe_lora.tasks.scores import ScoresTask

TASK = ScoresTask(keys=("joy", "calm"))
EMOBANK = Path(__file__).parents[3] / "shared" / "data" / "emobank"
TEXTS = """id,split,text
a,train,"Well, ""hello"" there"
b,dev,two
c,test,three
d,train,never rated
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts.csv").write_text(TEXTS)
    (tmp_path / "scores.csv").write_text("key,joy\nc,5.0\na,1.0\nb,3.3\n")
    (tmp_path / "more.jsonl").write_text(
        '{"id": "b", "calm": 2}\n\n{"id": "a", "calm": "4.5"}\n{"id": "c", "calm": 1}\n'
    )
    return tmp_path


def source(folder: Path, **changes: Any) -> ImportSource:
    return ImportSource.model_validate(
        {
            "kind": "import",
            "source_dir": str(folder),
            "files": {
                "texts": {"path": "texts.csv"},
                "scores": {"path": "scores.csv", "id": "key"},
                "more": {"path": "more.jsonl"},
            },
            "request": "texts.text",
            "target": {"joy": "scores.joy", "calm": "more.calm"},
            "rescale": {"low": 1.0, "high": 5.0},
            "split": "texts.split",
            "split_names": {"train": "train", "dev": "valid", "test": "test"},
            **changes,
        }
    )


def test_files_are_joined_by_id_and_rescaled(folder: Path) -> None:
    """(3.3 - 1) * 25 = 57.5 is 58 and 4.5 is 87.5, so 88 (halves to even). A join by position would swap them."""
    imported = read_import(source(folder), TASK, "data.source")
    assert [(r.request, dict(r.target)) for r in imported.rows] == [
        ('Well, "hello" there', {"joy": 0, "calm": 88}),
        ("two", {"joy": 58, "calm": 25}),
        ("three", {"joy": 100, "calm": 0}),
    ]
    assert imported.splits == ["train", "valid", "test"]
    assert imported.dropped == {"no entry in scores, more": 1}
    assert {r.sampler for r in imported.rows} == {"import"}


def test_one_decimal_is_kept(folder: Path) -> None:
    """Rounding to integers in a task with one decimal loses what the raters said."""
    imported = read_import(source(folder), ScoresTask(keys=("joy", "calm"), low=0, high=10, decimals=1), "data.source")
    assert imported.rows[1].target == {"joy": 5.8, "calm": 2.5}


def message(folder: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as error:
        read_import(source(folder, **changes), TASK, "data.source")
    return str(error.value)


def test_a_missing_file_names_its_key_and_the_way_out(folder: Path) -> None:
    """`No such file` alone leaves a newcomer looking for a folder that was never on their computer."""
    (folder / "scores.csv").unlink()
    assert message(folder) == (
        f"data.source.files.scores.path: expected a file; got {folder}/scores.csv, which does not exist; "
        "set data.source.source_dir=FOLDER to the folder it is in"
    )


def test_a_missing_column_lists_the_columns(folder: Path) -> None:
    """A KeyError shows neither the file nor what to write instead."""
    assert message(folder, request="texts.sentence", split="other.split") == (
        f"data.source.request: expected a column of {folder}/texts.csv (id, split, text); got 'sentence'\n"
        "data.source.split: expected FILE.COLUMN with a file of texts, scores, more; got 'other.split'"
    )


def test_a_missing_id_column_lists_the_columns(folder: Path) -> None:
    """The join column is named in another place of the recipe than the others."""
    files = {**source(folder).model_dump()["files"], "scores": {"path": "scores.csv", "id": "id"}}
    assert message(folder, files=files) == (f"{folder}/scores.csv:2: expected a column 'id' to join by; got key, joy")


def test_bad_values_are_all_reported_with_their_lines(folder: Path) -> None:
    """Stopping at the first of a hundred bad cells makes a hundred runs; nan and out-of-range must not be clipped."""
    (folder / "scores.csv").write_text("key,joy\nc,5.1\na,high\nb,nan\n")
    assert message(folder) == (
        f"{folder}/scores.csv:3: joy: expected a number; got 'high'\n"
        f"{folder}/scores.csv:4: joy: expected a number; got 'nan'\n"
        f"{folder}/scores.csv:2: joy: expected 1 to 5 (data.source.rescale); got 5.1"
    )


def test_values_without_a_scale_must_fit_the_task(folder: Path) -> None:
    """Without rescale a source on another scale would otherwise be clipped to one value."""
    (folder / "scores.csv").write_text("key,joy\nc,500\na,1\nb,2\n")
    assert message(folder, rescale=None) == (
        f"{folder}/scores.csv:2: joy: expected 0 to 100 (the task's range; add data.source.rescale); got 500"
    )


def test_duplicate_ids_are_an_error(folder: Path) -> None:
    """A join that silently takes the last of two entries depends on the order of a file."""
    (folder / "scores.csv").write_text("key,joy\na,1\nb,2\na,3\n")
    assert message(folder) == f"{folder}/scores.csv:4: id 'a' is already used in line 2"


def test_lines_are_counted_over_quoted_line_breaks(folder: Path) -> None:
    """Counting records instead of lines points an editor at the wrong place."""
    (folder / "texts.csv").write_text('id,split,text\na,train,"one\nstill one"\nb,nowhere,two\n')
    assert message(folder) == (
        f"{folder}/texts.csv:4: split: expected a split of data.source.split_names (train, dev, test); got 'nowhere'"
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("texts.csv", "id,split,text\na,train\n", "texts.csv:2: expected 3 fields as in the header; got fewer"),
        ("texts.csv", "id,split,text\na,train,x,y\n", "texts.csv:2: expected 3 fields as in the header; got more"),
        ("texts.csv", "id,split,text\n", "texts.csv: expected at least one entry; got an empty file"),
        ("more.jsonl", "[1]\n", "more.jsonl:1: expected a JSON object; got list"),
    ],
)
def test_broken_files_are_named(folder: Path, name: str, content: str, expected: str) -> None:
    """A traceback from the csv module says nothing about which of three files is broken."""
    (folder / name).write_text(content)
    assert message(folder) == f"{folder}/{expected}"


def test_text_that_is_not_utf8_is_named(folder: Path) -> None:
    """Shift-JIS files are common in Japanese projects."""
    (folder / "texts.csv").write_bytes("id,split,text\na,train,雨\n".encode("shift_jis"))
    assert message(folder) == (
        f"{folder}/texts.csv:2: expected UTF-8 text; got byte 0x89; it looks like Shift-JIS ('雨'); "
        "write data.source.files.texts.encoding: cp932, or save the file as UTF-8"
    )


def test_what_people_wrote_is_kept(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Filters for generated text would drop every sentence with a year from a human-labelled set, and "!", too."""
    (folder / "texts.csv").write_text("id,split,text\na,train,In 1984 joy was rare\nb,dev,!\nc,test,None\n")
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "task": TASK.model_dump(),
            "student": {"model": "none"},
            "data": {"name": "d", "source": source(folder).model_dump()},
        }
    )
    out = tmp_path_factory.mktemp("out") / "d"
    assert build_dataset(recipe, out).rows == {"train": 1, "valid": 1, "test": 1}
    assert read_rows(split_path(out, "train"), TASK)[0].request == "In 1984 joy was rare"


@pytest.mark.skipif(not EMOBANK.is_dir(), reason="EmoBank is not at ../shared/data/emobank beside this repository")
def test_emobank_six_comes_out_as_published(tmp_path: Path) -> None:
    """1,000 test rows and a train mean of 0.0065 (0.0066 with halves rounded up) are what every figure refers to."""
    keys = tuple(f"{who}_{what}" for who in ("reader", "writer") for what in ("valence", "arousal", "dominance"))
    data = {
        "kind": "import",
        "source_dir": str(EMOBANK),
        "files": {name: {"path": f"{name}.csv"} for name in ("emobank", "reader", "writer")},
        "request": "emobank.text",
        "target": {key: f"{key.split('_')[0]}.{key.split('_')[1][0].upper()}" for key in keys},
        "rescale": {"low": 1.0, "high": 5.0},
        "split": "emobank.split",
        "split_names": {"train": "train", "dev": "valid", "test": "test"},
    }
    recipe = Recipe.model_validate(
        {"name": "e", "task": {"keys": keys}, "student": {"model": "none"}, "data": {"name": "emobank", "source": data}}
    )
    report = build_dataset(recipe, tmp_path / "emobank")
    assert report.rows == {"train": 7984, "valid": 991, "test": 1000}
    assert report.rejected == {"also in test": 62, "also in valid": 25}
    train, test = (
        targets_matrix(read_rows(split_path(tmp_path / "emobank", split), recipe.task), recipe.task) / 100
        for split in ("train", "test")
    )
    assert ((test - train.mean(axis=0)) ** 2).mean() == pytest.approx(0.00654, abs=0.00001)
