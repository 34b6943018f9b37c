"""Rows in other tools' formats and back, and what is said of files that are not as they should be."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppe_lora.cells import is_blank
from ppe_lora.cli import main
from ppe_lora.corpus.convert import convert
from ppe_lora.corpus.formats import FORMATS, hosted_problems, record_of, row_of
from ppe_lora.corpus.rows import Row, read_rows, row_id, split_path, write_rows
from ppe_lora.errors import DataError
from ppe_lora.tasks.scores import ScoresTask

TASK = ScoresTask(keys=("joy", "calm"))
TENTHS = ScoresTask(keys=("joy", "calm"), low=-1, high=1, decimals=1)
SIGNS = st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\t\r\n\x0b\x85")
TEXT = st.text(SIGNS, min_size=1, max_size=40).filter(lambda text: not is_blank(text))
NAME = st.text("abcdefgh雨", min_size=1, max_size=5)


@st.composite
def rows(draw: st.DrawFn, task: ScoresTask, context: st.SearchStrategy[Any]) -> Row:
    request, language = draw(TEXT), draw(st.sampled_from(("en", "ja")))
    target = {key: task.round(draw(st.floats(task.low, task.high))) for key in task.keys}
    stated = draw(st.none() | context)
    return Row(
        id=row_id(request, target, language, stated),
        request=request,
        target=target,
        language=language,
        style=draw(st.none() | st.sampled_from(("polite", "short"))),
        scenario=tuple(draw(st.lists(NAME, max_size=2))),
        sampler=draw(st.sampled_from(("uniform", "import"))),
        teacher=draw(st.none() | NAME),
        context=stated,
    )


@pytest.mark.parametrize("to", [name for name in FORMATS if name != "finetuning_api"])
@pytest.mark.parametrize("task", [TASK, TENTHS], ids=["integers", "tenths"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_row_comes_back_whole(to: Any, task: ScoresTask, data: st.DataObject) -> None:
    """A request that ends like a context, or a context with a comma, comes back as another request otherwise."""
    row = data.draw(rows(task, st.dictionaries(TEXT, TEXT, min_size=1, max_size=2)))
    assert row_of(json.loads(json.dumps(record_of(row, task, to))), task) == row


@given(rows(TASK, st.dictionaries(NAME, NAME, min_size=1, max_size=2)))
@settings(max_examples=80, deadline=None)
def test_a_hosted_record_comes_back_with_what_the_student_sees(row: Row) -> None:
    """It has the conversation only; id, request, language and context must be found in its texts."""
    record = record_of(row, TASK, "finetuning_api")
    assert hosted_problems(record) == []
    assert list(record) == ["messages"]
    back = row_of(record, TASK)
    assert back == Row(id=row.id, request=row.request, target=row.target, language=row.language, context=row.context)


def test_the_formats_by_hand() -> None:
    """The other tools' names of the parts: a swapped input and output trains the wrong way round."""
    row = Row(id="7", request="雨の曲", target={"joy": 3, "calm": 9}, language="ja", context={"時": "夜"})
    system, user, answer = TASK.instruction_text("ja"), "雨の曲\n状況: 時=夜", '{"joy":3,"calm":9}'
    other = {"id": "7", "language": "ja", "scenario": [], "sampler": "import", "context": {"時": "夜"}}
    conversation = [("system", system), ("user", user), ("assistant", answer)]
    messages = [{"role": role, "content": content} for role, content in conversation]
    assert record_of(row, TASK, "messages") == {"messages": messages, **other}
    assert record_of(row, TASK, "finetuning_api") == {"messages": messages}
    assert record_of(row, TASK, "instruction") == {"instruction": system, "input": user, "output": answer, **other}
    assert record_of(row, TASK, "prompt_completion") == {
        "prompt": f"{system}\n\n{user}\n",
        "completion": answer,
        **other,
    }


def test_foreign_records_are_read_without_our_fields() -> None:
    """Data made for another trainer has its own instruction or none, and no language."""
    answer = '{"calm": 9, "joy": 3}'
    for record in (
        {"messages": [{"role": "user", "content": "雨の夜の曲"}, {"role": "assistant", "content": answer}]},
        {"instruction": "Rate it", "input": "雨の夜の曲", "output": answer, "source": "theirs"},
        {"instruction": "雨の夜の曲", "input": "", "output": answer},
        {"prompt": "雨の夜の曲", "completion": answer},
    ):
        row = row_of(record, TASK)
        assert (row.request, row.target, row.language) == ("雨の夜の曲", {"joy": 3, "calm": 9}, "ja")
        assert row.id == row_id(row.request, row.target, "ja", None)


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


ANSWER = said("assistant", '{"joy":3,"calm":9}')


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"text": "x"},
            "expected request and target, or messages, or instruction, input and output, or prompt and completion; "
            "got text",
        ),
        ({"messages": []}, "messages: expected a list of messages; got []"),
        ({"messages": ["hi"]}, "messages.0: expected an object with role and content; got 'hi'"),
        ({"messages": [said("user", "x"), said("robot", "y")]}, "messages.1.role: expected assistant; got 'robot'"),
        ({"messages": [ANSWER, ANSWER]}, "messages.0.role: expected system or user; got 'assistant'"),
        ({"messages": [said("user", "x"), said("user", "x")]}, "messages.1.role: expected assistant; got 'user'"),
        ({"messages": [said("user", " "), ANSWER]}, "messages.0.content: expected a text; got ' '"),
        (
            {"messages": [said("user", "x")]},
            "messages: expected the assistant's answer last; got a message of the user",
        ),
        (
            {"messages": [said("user", "x"), ANSWER, said("user", "x"), ANSWER]},
            "messages: expected one request and one answer; got user, assistant, user, assistant",
        ),
        (
            {"prompt": "a quiet song", "completion": '{"joy":3,"calm":900}'},
            "the answer is none of the task: out of range: calm: 900; expected joy, calm from 0 to 100; "
            "is it the recipe of these data?",
        ),
        ({"prompt": "x", "completion": None}, "completion: expected a text; got None"),
        (
            {"prompt": "eine traurige Melodie für den Abend", "completion": '{"joy":3,"calm":9}'},
            "language: expected en or ja; got de; give every record one",
        ),
        ({"request": "x", "target": {"joy": 1}, "language": "en"}, "missing key 'calm'"),
        (
            {"request": "", "target": [1], "language": "en"},
            "request: String should have at least 1 character; target: Input should be an object",
        ),
    ],
)
def test_what_is_wrong_with_a_record_is_said(record: dict[str, Any], expected: str) -> None:
    """`KeyError: 'content'` sends the user into our source instead of to the line."""
    with pytest.raises(ValueError, match=r".") as error:
        row_of(record, TASK)
    assert str(error.value) == expected


def test_rows_of_another_task_are_refused_once(folder: Path) -> None:
    """Twenty long lines said the same, and 369 more were left out."""
    path, task = split_path(folder, "train"), ScoresTask(keys=("a", "b"))
    with pytest.raises(DataError) as error:
        read_rows(path, task)
    assert str(error.value) == (
        f"{folder}: expected rows with the keys a, b; got joy, calm; give the new task a data set of its own: "
        "data.name=NAME"
    )
    right = '{"id": "r", "request": "x", "target": {"a": 1, "b": 2}, "language": "en"}\n'
    path.write_text(path.read_text(encoding="utf-8") + right, encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_rows(path, task)
    assert str(error.value).startswith(f"{path}:1: target: missing key 'a'; ")


def test_what_a_hosted_service_refuses_is_found_before_the_upload() -> None:
    """A rejected upload costs an hour and names one line at a time."""
    fine = {"messages": [said("system", "s"), said("user", "x"), ANSWER]}
    assert hosted_problems(fine) == []
    assert hosted_problems({**fine, "id": "1"}) == ["expected the key messages only; got id, too"]
    assert hosted_problems({"messages": [said("user", "雨" * 20_000), ANSWER]}) == [
        "messages: expected at most 32768 bytes of text; got 60018; shorten the request"
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of three, two and one rows; one has a context and one nothing beside the request."""
    for split, count in (("train", 3), ("valid", 2), ("test", 1)):
        found = []
        for i in range(count):
            request, context = f"{split} song {i}", {"time": "night"} if i == 1 else None
            target = {"joy": i, "calm": 100}
            identity = row_id(request, target, "en", context)
            style = "short" if i else None
            found.append(Row(id=identity, request=request, target=target, language="en", style=style, context=context))
        write_rows(split_path(tmp_path / "data", split), found)
    return tmp_path / "data"


@pytest.mark.parametrize("to", FORMATS)
def test_a_data_set_there_and_back_is_the_same(folder: Path, tmp_path: Path, to: Any) -> None:
    """Files are compared byte by byte, but for what a hosted file cannot carry."""
    converted = convert(folder, tmp_path / "there", to, TASK)
    assert converted == ({"train": 3, "valid": 2, "test": 1}, 0)
    assert convert(tmp_path / "there", tmp_path / "back", "rows", TASK) == converted
    for split in ("train", "valid", "test"):
        before, after = (read_rows(split_path(where, split), TASK) for where in (folder, tmp_path / "back"))
        if to == "finetuning_api":
            before = [row.model_copy(update={"style": None}) for row in before]
        assert after == before
    report = [json.loads(line) for line in (tmp_path / "there" / "report.jsonl").read_text().splitlines()]
    assert len(report) == 6
    assert all(line["problems"] == [] for line in report)


def test_a_hugging_face_data_set_has_features_and_usual_split_names(folder: Path, tmp_path: Path) -> None:
    """Columns inferred from the first rows lose a context that comes later; `valid` is unknown to other tools."""
    import datasets

    convert(folder, tmp_path / "hf", "hf", TASK)
    loaded = datasets.load_from_disk(str(tmp_path / "hf"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 3, "validation": 2, "test": 1}
    assert loaded["train"].features["target"] == {"joy": datasets.Value("int64"), "calm": datasets.Value("int64")}
    assert loaded["train"][1]["context"] == [{"name": "time", "value": "night"}]
    assert [message["role"] for message in loaded["train"][0]["messages"]] == ["system", "user", "assistant"]


def test_bad_lines_are_named_and_left_out_on_request_only(tmp_path: Path) -> None:
    """One bad line of a hundred thousand must neither pass in silence nor stop who knows of it."""
    file = tmp_path / "theirs_dev.jsonl"
    good = {"prompt": "a quiet song for tonight", "completion": '{"joy":3,"calm":9}'}
    bad = {**good, "completion": "calm: 9"}
    file.write_text("".join(json.dumps(record) + "\n" for record in (good, bad, good)))
    with pytest.raises(DataError) as error:
        convert(file, tmp_path / "out", "rows", TASK)
    first, second = str(error.value).splitlines()
    assert first.startswith(f"{file}:2: the answer is none of the task: not JSON: ")
    assert (
        second
        == f"{file}:3: id {row_id(good['prompt'], {'joy': 3, 'calm': 9}, 'en', None)} is already used in {file}:1"
    )
    assert not (tmp_path / "out").exists()
    assert convert(file, tmp_path / "out", "rows", TASK, skip_invalid=True) == ({"valid": 1}, 2)
    report = [json.loads(line) for line in (tmp_path / "out" / "report.jsonl").read_text().splitlines()]
    assert [(line["where"], line["split"], len(line["problems"])) for line in report] == [
        (f"{file}:1", "valid", 0), (f"{file}:2", "valid", 1), (f"{file}:3", "valid", 1),
    ]  # fmt: skip


def test_sources_and_targets_that_cannot_be_are_named(tmp_path: Path) -> None:
    """A conversion over existing files would mix two data sets."""
    (tmp_path / "empty").mkdir()
    for source, target, expected in (
        ("none", "out", f"{tmp_path}/none: expected a data file or folder; there is none"),
        ("empty", "empty", f"{tmp_path}/empty: expected a new folder; it exists already; remove it or choose another"),
        (
            "empty",
            "out",
            f"{tmp_path}/empty: expected files such as train.jsonl, or a Hugging Face data set; got neither; "
            "name one file instead of the folder, or rename the files after their splits",
        ),
    ):
        with pytest.raises(DataError) as error:
            convert(tmp_path / source, tmp_path / target, "rows", TASK)
        assert str(error.value) == expected


def test_the_command_exits_with_2_and_names_the_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown format that falls back to another one writes the wrong files without a word."""
    monkeypatch.setattr(sys, "argv", ["ppe-lora", "data", "convert", str(tmp_path), "x", "--to", "alpaca"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: --to: expected one of {', '.join(FORMATS)}; got alpaca\n"
