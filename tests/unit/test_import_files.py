"""Files as people have them: encodings, separators, ids, cells and scales are read right or refused with the remedy."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppe_lora.corpus.build import build_dataset
from ppe_lora.corpus.importers import Imported, read_import
from ppe_lora.corpus.tables import read_records
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import ImportSource, Recipe
from ppe_lora.tasks.scores import ScoresTask

JOY = ScoresTask(keys=("joy",))
ROWS = "id,text,joy\na,one,0\nb,two,50\nc,three,100\n"


def one(folder: Path, name: str, content: str | bytes, task: ScoresTask = JOY, **changes: Any) -> Imported:
    """The import of one file with the columns id, text and joy."""
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    file = {"path": name} | ({"encoding": changes.pop("encoding")} if "encoding" in changes else {})
    return several(folder, {"all": file}, task, **changes)


def several(folder: Path, files: dict[str, Any], task: ScoresTask = JOY, **changes: Any) -> Imported:
    given = {"kind": "import", "source_dir": str(folder), "files": files}
    given |= {"request": "all.text", "target": {"joy": "all.joy"}, **changes}
    return read_import(ImportSource.model_validate(given), task, "data.source")


def refusal(read: Callable[..., Any], *args: Any, **changes: Any) -> str:
    with pytest.raises(DataError) as error:
        read(*args, **changes)
    return str(error.value)


def texts(imported: Imported) -> list[str]:
    return [row.request for row in imported.rows]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", ROWS),
        ("x.CSV", "\ufeff" + ROWS),
        ("x.csv", ROWS.replace(",", ";")),
        ("x.csv", ROWS.replace(",", "\t")),
        ("x.csv", "sep=;\r\n" + ROWS.replace(",", ";").replace("\n", "\r\n")),
        ("x.csv", '\ufeff"sep=|"\n' + ROWS.replace(",", "|")),
        ("x.tsv", ROWS.replace(",", "\t")),
        ("x.csv", ROWS.replace("\n", "\r")),
        ("x.csv", ROWS.replace("\n", "\r\n", 2) + "\r\n\n,,\n"),
        ("x.csv", ROWS.replace("id,text,joy", ' id ,"text", joy,,')),
        ("x.csv", ROWS.replace("\n", ",,\n")),
        ("x.csv", ROWS.replace("id,text,joy", "id;a,text,joy")),
        ("x.JSONL", '\ufeff{"id": 1, "text": "one", "joy": 0}\r\n{"id": 2, "text": "two", "joy": "50"}\r\n\r\n'
                    '{"text": "three", "joy": 100, "id": "x"}'),
        ("x.ndjson", '{"id": 1, "text": "one", "joy": 0}\r{"id": 2, "text": "two", "joy": 50}\r'
                     '{"id": 3, "text": "three", "joy": 1e2}\r'),
    ],
)  # fmt: skip
def test_files_of_many_programs_are_read(tmp_path: Path, name: str, content: str) -> None:
    """Semicolons, tabs, `sep=`, capital endings, old line ends and Excel's empty columns were cryptic refusals."""
    changes: Any = {"files": {"all": {"path": name, "id": "id;a"}}} if "id;a" in content else {}
    imported = one(tmp_path, name, content, **changes) if not changes else None
    if imported is None:
        (tmp_path / name).write_text(content)
        imported = several(tmp_path, {"all": {"path": name, "id": "id;a"}})
    assert [(row.request, row.target["joy"]) for row in imported.rows] == [("one", 0), ("two", 50), ("three", 100)]
    assert imported.notes == []


JAPANESE = 'id,text,joy\na,雨の夜に聴く曲,0\nb,カフェ,50\nc,"朝",100\n'
ACCENTS = 'id,text,joy\na,"cafe",0\nb,un été à la crème brûlée,50\nc,it\u2019s naïve,100\n'


@pytest.mark.parametrize(
    ("content", "encoding", "line", "words"),
    [
        (JAPANESE, "cp932", 2, "got byte 0x89; it looks like Shift-JIS ('雨の夜に聴く曲,0')"),
        (JAPANESE, "euc_jp", 2, "got byte 0xb1; it looks like EUC-JP ('雨の夜に聴く曲,0')"),
        (ACCENTS, "cp1252", 3, "got byte 0xe9; it looks like Windows-1252 or Latin-1 ('été à la crème b')"),
        (JAPANESE, "utf-16", 1, "its first bytes are those of UTF-16"),
        (ROWS, "utf-16-le", 1, "its first bytes are those of UTF-16-LE"),
        (ROWS, "utf-16-be", 1, "its first bytes are those of UTF-16-BE"),
        (ROWS, "utf-32", 1, "its first bytes are those of UTF-32"),
    ],
)
def test_an_encoding_is_named_with_the_line_to_write(
    tmp_path: Path, content: str, encoding: str, line: int, words: str
) -> None:
    """`got byte 0x89` said neither where nor what to do; with the line that the message names the file is read."""
    message = refusal(one, tmp_path, "x.csv", content.encode(encoding))
    key = f"data.source.files.all.encoding: {encoding}"
    assert message == (f"{tmp_path}/x.csv:{line}: expected UTF-8 text; {words}; write {key}, or save the file as UTF-8")
    assert len(one(tmp_path, "x.csv", content.encode(encoding), encoding=encoding).rows) == 3


def test_a_wrong_encoding_in_the_recipe_is_named(tmp_path: Path) -> None:
    """The remedy must not lead to a traceback."""
    assert refusal(one, tmp_path, "x.csv", "id,text,joy\na,é,5\n".encode("cp1252"), encoding="ascii") == (
        f"{tmp_path}/x.csv:2: expected ascii text; got byte 0xe9; it looks like Windows-1252 or Latin-1 ('é,5'); "
        "write data.source.files.all.encoding: cp1252, or save the file as UTF-8"
    )
    with pytest.raises(ValueError, match="expected a text encoding such as utf-8, cp932 or cp1252; got 'base64'"):
        one(tmp_path, "x.csv", ROWS, encoding="base64")


def test_files_without_a_key_say_how_to_convert_them(tmp_path: Path) -> None:
    """Vectors of real play and files to convert have no key for their encoding."""
    (tmp_path / "x.jsonl").write_bytes('{"a": "雨の夜"}\n'.encode("cp932"))
    assert refusal(lambda: list(read_records(tmp_path / "x.jsonl"))) == (
        f"{tmp_path}/x.jsonl:1: expected UTF-8 text; got byte 0x89; it looks like Shift-JIS "
        "('雨の夜\"}'); save the file as UTF-8: iconv -f cp932 -t utf-8 x.jsonl > NEW"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('id,text,joy\n\na,"one\r\nstill",1\n\n\nb,two,high\n', "x.csv:7: joy: expected a number; got 'high'"),
        ('id,text,joy\r\na,"x\ry",1\r\nb,two,high\r\n', "x.csv:4: joy: expected a number; got 'high'"),
        ('id,text,joy\na,one,1\nb,"two" more,2\n', "x.csv:3: not CSV: ',' expected after '\"'"),
        (
            'id,text,joy\na,one,1\nb,"two,2\nc,three,3\n',
            "x.csv:3: not CSV: a quote that opens in this line or after it is never closed",
        ),
        (
            f'id,text,joy\na,one,1\nb,"{"x" * 140_000}',
            "x.csv:3: not CSV: a cell is longer than 131,072 characters; is a quote never closed?",
        ),
        ("sep=;\nid;text;joy\na;one\n", "x.csv:3: expected 3 fields as in the header; got fewer"),
        (
            "id,text,joy\na,one\nb,two,1,2\nc,three,3\n",
            "x.csv:2: expected 3 fields as in the header; got fewer\n"
            "{}/x.csv:3: expected 3 fields as in the header; got more",
        ),
        ("id,text,joy,joy\n", "x.csv:1: the column name 'joy' is there twice (columns 3 and 4); rename one"),
        ("\n id,text, joy ,joy\n", "x.csv:2: the column name 'joy' is there twice (columns 3 and 4); rename one"),
        (",,\n1,2,3\n", "x.csv:1: expected a header with the names of the columns; got 3 empty cells"),
        ("id,text,joy\n", "x.csv: expected at least one entry; got an empty file"),
        ("", "x.csv: expected at least one entry; got an empty file"),
        ("id,text,joy\na,one,1\n\x00,two,2\n", "x.csv:3: id: a text holds the control character U+0000"),
        ("id,text,joy\na,o\x00e,1\n", "x.csv:2: text: a text holds the control character U+0000"),
        ("id,text,joy\na,one,\"3,5\"\n", "x.csv:2: joy: expected a number; got '3,5'; write the decimals after a point "
                                       "and no thousands separators"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_csv_file_is_said_with_its_line(tmp_path: Path, content: str, expected: str) -> None:
    """Lines of CSV errors were one too small, and a carriage return in a cell moved all that follow."""
    assert refusal(one, tmp_path, "x.csv", content) == f"{tmp_path}/{expected.format(tmp_path)}"


def test_names_of_files_and_columns_may_have_dots(tmp_path: Path) -> None:
    """`expected FILE.COLUMN with a file of x.csv; got 'x.csv.text'` had no remedy."""
    (tmp_path / "x.csv").write_text("id,text.en,joy\na,one,0\n")
    names = {"request": "x.csv.text.en", "target": {"joy": "x.csv.joy"}}
    assert texts(several(tmp_path, {"x.csv": {"path": "x.csv"}}, **names)) == ["one"]


def test_a_single_file_needs_no_ids(tmp_path: Path) -> None:
    """There is nothing to join it to; a column of numbers had to be made for it."""
    assert texts(one(tmp_path, "x.csv", "text,joy\none,0\none,50\n\ntwo,100\n")) == ["one", "one", "two"]
    assert refusal(one, tmp_path, "x.csv", "Answers 2026,,\nid,text,joy\n") == (
        f"data.source.request: expected a column of {tmp_path}/x.csv (Answers 2026); got 'text'\n"
        f"data.source.target.joy: expected a column of {tmp_path}/x.csv (Answers 2026); got 'joy'"
    )
    (tmp_path / "x.csv").write_text("text,joy\none,0\n")
    assert refusal(several, tmp_path, {"all": {"path": "x.csv", "id": "key"}}) == (
        f"{tmp_path}/x.csv:2: expected a column 'key' to join by; got text, joy"
    )


LINES = "write every object on a line of its own, without brackets around them: jq -c '.[]' FILE > FILE.jsonl"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"id": 1, "text": "x", "text": "y", "joy": 1}\n', "x.jsonl:1: the key 'text' is there twice"),
        ('{"id": 1, "text": "x", "joy": NaN}\n', "x.jsonl:1: NaN is no number of JSON"),
        (
            '{"id": 1, "text": "\\ud800", "joy": 1}\n',
            "x.jsonl:1: a text holds half of a character (the lone surrogate U+D800)",
        ),
        (
            '{"id": 1},\n{"id": 2,}\n',
            "x.jsonl:1: not JSON: Extra data (column 10)\n"
            "{}/x.jsonl:2: not JSON: Expecting property name enclosed in double quotes (column 10)",
        ),
        ('[\n{"id": 1}\n]\n', f"x.jsonl:1: expected a JSON object; got the start of a list; {LINES}"),
        ('[{"id": 1}]\n', f"x.jsonl:1: expected a JSON object; got list; {LINES}"),
        (
            '{"id": 1, "text": ["x"], "joy": 1}\n{"id": 2, "text": true, "joy": true}\n{"id": 3, "joy": 1}\n',
            "x.jsonl:1: text: expected a text; got a list: ['x']\n"
            "{}/x.jsonl:2: text: expected a text; got a truth value: True\n"
            "{}/x.jsonl:2: joy: expected a number; got a truth value: True\n"
            "{}/x.jsonl:3: expected the key 'text'; got id, joy",
        ),
        (
            '{"id": 1, "text": "x", "joy": 1}\n{"text": "y", "joy": 2}\n{"id": 1.0, "text": "y", "joy": 2}\n',
            "x.jsonl:2: expected a column 'id' to join by; got text, joy\n"
            "{}/x.jsonl:3: id: expected a text or a whole number; got 1.0; write the id as a text",
        ),
    ],
)
def test_what_is_wrong_in_a_jsonl_file_is_said_with_its_line(tmp_path: Path, content: str, expected: str) -> None:
    """A record without the request's key was a KeyError, a list was trained as Python writes it."""
    assert refusal(one, tmp_path, "x.jsonl", content) == f"{tmp_path}/{expected.replace('{}', str(tmp_path))}"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.csv", gzip.compress(ROWS.encode(), mtime=0), "x.csv: expected text; got gzip; unpack it: gunzip x.csv"),
        (
            "x.csv",
            b"PK\x03\x04...",
            "x.csv: expected text; got an Excel workbook or a zip archive; save its sheet as `CSV UTF-8`, or unpack it",
        ),
        ("x.jsonl", b"PAR1...", "x.jsonl: expected text; got Parquet; write it as CSV or JSONL"),
    ],
)
def test_files_of_other_kinds_are_told_by_their_first_bytes(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    """A workbook that somebody renamed is no text in a strange encoding."""
    assert refusal(one, tmp_path, name, content) == f"{tmp_path}/{expected}"


def test_paths_that_are_no_files_are_named(tmp_path: Path) -> None:
    """`which does not exist` about a folder that is there sends people to the wrong place."""
    (tmp_path / "x.csv").mkdir()
    key = "data.source.files.all.path"
    assert refusal(several, tmp_path, {"all": {"path": "x.csv"}}) == (
        f"{key}: expected a file; got the folder {tmp_path}/x.csv"
    )
    assert refusal(one, tmp_path, "x.json", "[]") == (
        f"{key}: expected .csv, .tsv or .jsonl; got {tmp_path}/x.json; {LINES}"
    )
    assert refusal(one, tmp_path, "x.csv.gz", b"") == f"{key}: expected .csv, .tsv or .jsonl; got {tmp_path}/x.csv.gz"
    os.mkfifo(tmp_path / "pipe.csv")
    assert refusal(several, tmp_path, {"all": {"path": "pipe.csv"}}) == (
        f"{key}: expected a file; got the pipe or device {tmp_path}/pipe.csv"
    )
    (tmp_path / "link.csv").symlink_to("gone.csv")
    assert "link.csv, which does not exist; set data.source.source_dir=FOLDER" in refusal(
        several, tmp_path, {"all": {"path": "link.csv"}}
    )


def joined(folder: Path, left: list[str], right: list[str], **changes: Any) -> Imported:
    (folder / "a.csv").write_text("id,text\n" + "".join(f"{key},text {i}\n" for i, key in enumerate(left)))
    (folder / "b.csv").write_text("id,joy\n" + "".join(f"{key},{i * 7 % 100}\n" for i, key in enumerate(right)))
    files = {"all": {"path": "a.csv"}, "scores": {"path": "b.csv"}}
    return several(folder, files, target={"joy": "scores.joy"}, **changes)


def test_ids_that_differ_in_their_writing_are_refused_with_their_lines(tmp_path: Path) -> None:
    """Half of the rows were left out in silence for `01` against `1`, or all of them for `1.0`."""
    numbers = [str(i) for i in range(1, 61)]
    padded = [f"{i:02d}" for i in range(1, 61)]
    assert refusal(joined, tmp_path, padded, numbers).splitlines()[0] == (
        f"{tmp_path}/a.csv:2: id '01' and id '1' in {tmp_path}/b.csv:2 differ in their writing only, so they do not "
        "meet; write both alike"
    )
    for other in ("{}.0", " {}", "{} ", "+{}", "０{}"):
        message = refusal(joined, tmp_path, numbers, [other.format(i) for i in numbers])
        assert message.count("differ in their writing only") == 20
        assert message.endswith("... and 40 more")


def test_ids_that_are_alike_within_a_file_are_refused(tmp_path: Path) -> None:
    """Of `1` and ` 1` only one meets the other file; which one is chance."""
    assert refusal(joined, tmp_path, ["1", " 1", "2"], ["1", "2"]) == (
        f"{tmp_path}/a.csv:3: id ' 1' is '1' of line 2 but for blanks or invisible signs; make them one or two"
    )
    assert refusal(joined, tmp_path, ["a", "a\u200b", "b"], ["a", "b"]) == (
        f"{tmp_path}/a.csv:3: id 'a\\u200b' is 'a' of line 2 but for blanks or invisible signs; make them one or two"
    )
    assert len(joined(tmp_path, ["1.1", "1.10", "a", "A"], ["1.1", "1.10", "a", "A"]).rows) == 4


def test_a_join_says_how_many_ids_met(tmp_path: Path) -> None:
    """`left out of 30: 30` of 60 and an advice about `data.split.valid` said nothing of ids."""
    imported = joined(tmp_path, ["a", "b", "c", "d"], ["a", "b", "x"])
    assert imported.dropped == {"no entry in scores": 2}
    assert imported.notes == [
        "data.source.files.scores: 2 ids meet, of 4 in a.csv and 3 in b.csv; only in a.csv: 'c' (line 4), 'd' "
        "(line 5); only in b.csv: 'x' (line 4)",
        "data.source.target.joy: values from 0 to 7 only, of 0 to 100; are they on another scale?",
    ]
    left, right = [f"{i}a" for i in range(60)], [f"{i}a" for i in range(30, 90)]
    assert refusal(joined, tmp_path, left, right) == (
        "data.source.files.scores: 30 ids meet, of 60 in a.csv and 60 in b.csv; only in a.csv: '0a' (line 2), '1a' "
        "(line 3), '2a' (line 4), ...; only in b.csv: '60a' (line 32), '61a' (line 33), '62a' (line 34), ...; check "
        "data.source.files.all.id and data.source.files.scores.id"
    )


def test_files_named_after_splits_are_not_joined(tmp_path: Path) -> None:
    """`got none from 0 requests, change data.split.valid` was no advice for who has one file a split."""
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.csv").write_text(ROWS)
    files = {name: {"path": f"{name}.csv"} for name in ("train", "valid", "test")}
    expected = (
        "data.source.files: expected files of which a column is used; got valid, test without one; files are joined by "
        "id, not put one after the other; put the rows of all files into one file, with a column that says train, "
        "valid or test, and name it in data.source.split"
    )
    assert refusal(several, tmp_path, files, request="train.text", target={"joy": "train.joy"}) == expected
    (tmp_path / "test.csv").write_text(ROWS.replace("\n", "\nx").removesuffix("x"))
    two = {name: files[name] for name in ("train", "test")}
    assert refusal(several, tmp_path, two, request="train.text", target={"joy": "test.joy"}) == (
        "data.source.files.test: 0 ids meet, of 3 in train.csv and 3 in test.csv; only in train.csv: 'a' (line 2), 'b' "
        "(line 3), 'c' (line 4); only in test.csv: 'xa' (line 2), 'xb' (line 3), 'xc' (line 4); put the rows of "
        "all files into one file, with a column that says train, valid or test, and name it in data.source.split"
    )


def test_no_request_at_all_is_no_matter_of_the_split(tmp_path: Path) -> None:
    """Zero-width requests were rows; without any row the shares of the split are not to blame."""
    (tmp_path / "x.csv").write_text("id,text,joy\na,\u200b,0\nb, ,50\nc,,100\n")
    source = {"kind": "import", "source_dir": str(tmp_path), "files": {"all": {"path": "x.csv"}}}
    source |= {"request": "all.text", "target": {"joy": "all.joy"}}
    recipe = Recipe.model_validate(
        {"name": "r", "task": {"keys": ("joy",)}, "student": {"model": "none"}, "data": {"name": "d", "source": source}}
    )
    assert refusal(build_dataset, recipe, tmp_path / "d") == (
        "data d: expected rows in every split; got none for train, valid, test from 3 requests, 3 rejected (empty 3); "
        "check all.text, the column of the requests"
    )


def test_formulas_are_restored(tmp_path: Path) -> None:
    """What is neutralised on writing must come back as it was."""
    imported = one(tmp_path, "x.csv", "id,text,joy\na,'=1+1,0\nb,''=1,50\nc,'tis,100\n")
    assert texts(imported) == ["=1+1", "'=1", "'tis"]


def test_a_file_in_another_encoding_than_the_recipe_says_is_refused(tmp_path: Path) -> None:
    """UTF-8 read as Windows-1252 is `Ã©` in every row, without an error."""
    content = "id,text,joy\na,café,5\n"
    assert refusal(one, tmp_path, "x.csv", content, encoding="cp1252") == (
        f"{tmp_path}/x.csv: expected cp1252 text; got UTF-8; delete data.source.files.all.encoding"
    )
    assert refusal(one, tmp_path, "x.csv", content, encoding="utf-16") == (
        f"{tmp_path}/x.csv: expected utf-16 text; got text without a byte order mark; it looks like UTF-8; write "
        "data.source.files.all.encoding: utf-8, or save the file as UTF-8"
    )
    assert refusal(one, tmp_path, "x.csv", content.encode("utf-16"), encoding="utf-8-sig") == (
        f"{tmp_path}/x.csv:1: expected utf-8-sig text; got byte 0xff; it looks like utf-16; write "
        "data.source.files.all.encoding: utf-16, or save the file as UTF-8"
    )


def test_one_strange_byte_does_not_make_another_encoding(tmp_path: Path) -> None:
    """A byte that somebody pasted is no reason to read every other row as Windows-1252."""
    content = ROWS.replace("one", "café, naïve".replace(",", "")).encode() + b"d,caf\xe9,7\n"
    assert refusal(one, tmp_path, "x.csv", content) == (
        f"{tmp_path}/x.csv:5: expected UTF-8 text; got byte 0xe9; correct or delete it"
    )


def test_characters_that_were_lost_before_are_said(tmp_path: Path) -> None:
    """A file that was saved with `errors="replace"` has lost what a student should read."""
    assert one(tmp_path, "x.csv", ROWS.replace("two", "caf\ufffd")).notes == [
        f"{tmp_path}/x.csv:3: text: U+FFFD stands in 1 requests, for characters that were lost where the file was made"
    ]
