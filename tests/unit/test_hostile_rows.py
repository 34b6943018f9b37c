"""Rows and records that readers understand in different ways, and what a conversion would lose, are said."""

import json
from pathlib import Path
from typing import Any

import pytest

from ppe_lora.corpus.convert import convert
from ppe_lora.corpus.filters import filter_rows
from ppe_lora.corpus.formats import row_of
from ppe_lora.corpus.rows import Row, read_rows
from ppe_lora.corpus.teachers.llm.batch import read_batch_results
from ppe_lora.corpus.teachers.llm.exchange import Question
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import Filters
from ppe_lora.tasks.scores import Reason, Rejected, ScoresTask

TASK = ScoresTask(keys=("joy", "calm"))
ROW = '{"id": "1", "request": "rain", "target": {"joy": 3, "calm": 90}, "language": "en"}'


def refusal(read: Any, *args: Any) -> str:
    with pytest.raises(DataError) as error:
        read(*args)
    return str(error.value)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (ROW.replace('"joy": 3', '"joy": 3, "joy": 4'), "the key 'joy' is there twice"),
        (ROW.replace('"id": "1"', '"id": "1", "id": "2"'), "the key 'id' is there twice"),
        (ROW.replace('"id": "1"', '"id" :"1", "id": "2"'), "the key 'id' is there twice"),
        (ROW.replace('"id": "1"', '"id"\t: "1", "\\u0069d": "2"'), "the key 'id' is there twice"),
        (ROW.replace('"joy": 3', f'"joy": {"9" * 400}'), f"target: joy: expected 0 to 100; got {'9' * 400}"),
        (ROW.replace("rain", "\\u200b"), "request: expected a text; got blanks only: '\\u200b'"),
        (ROW.replace("rain", "\\u0000"), "request: a text holds the control character U+0000"),
        (ROW[:-1] + ', "context": {"time": "\\u0007"}}', "context.time: a text holds the control character U+0007"),
    ],
)
def test_a_row_that_is_ambiguous_or_shows_nothing_is_refused(tmp_path: Path, row: str, expected: str) -> None:
    """The last of two equal keys won; requests of zero width or NUL were rows."""
    path = tmp_path / "ft_request_param_train.jsonl"
    path.write_text(f"{row}\n")
    assert refusal(read_rows, path, TASK) == f"{path}:1: {expected}"
    path.write_text(f"{ROW}\n")
    assert len(read_rows(path, TASK)) == 1


def records(folder: Path, *found: dict[str, Any]) -> Path:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in found))
    return path


def chat(system: str | None, user: str, answer: str = '{"joy":3,"calm":90}') -> dict[str, Any]:
    said = [("system", system), ("user", user), ("assistant", answer)]
    return {"messages": [{"role": role, "content": text} for role, text in said if text is not None]}


def test_a_system_message_of_its_own_is_not_dropped(tmp_path: Path) -> None:
    """Rows with other instructions became the same request with other targets."""
    path = records(tmp_path, chat(TASK.instruction_text("en"), "rain"), chat(None, "sun"), chat("Be gloomy.", "snow"))
    assert refusal(convert, path, tmp_path / "out", "messages", TASK) == (
        f"{path}:3: messages.0: expected the recipe's instruction or no system message; got 'Be gloomy.', for which a "
        "row has no place; write it as task.instruction.en in the recipe, or delete it"
    )
    own = ScoresTask(keys=("joy", "calm"), instruction={"en": "Be gloomy."})
    assert convert(records(tmp_path, chat("Be gloomy.", "snow")), tmp_path / "out", "messages", own).rows == {
        "train": 1
    }


def alpaca(instruction: str, text: str, answer: str = '{"joy":3,"calm":90}') -> dict[str, Any]:
    return {"instruction": instruction, "input": text, "output": answer}


def test_one_instruction_of_all_records_is_said_and_two_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The instruction of another trainer's file may differ from ours; two of them are two tasks."""
    path = records(tmp_path, alpaca("Rate it", "rain"), alpaca("Rate it", "sun"))
    assert convert(path, tmp_path / "out", "rows", TASK).rows == {"train": 2}
    assert capsys.readouterr().out == "the records' instruction 'Rate it' is left out: rows have the recipe's\n"
    path = records(tmp_path, alpaca("Rate it", "rain"), alpaca("Rate it backwards", "sun"))
    assert refusal(convert, path, tmp_path / "more", "rows", TASK) == (
        f"{path}:2: instruction: expected one instruction in all records, since a row has no place for it; got 'Rate "
        f"it backwards' and, in {path}:1, 'Rate it'; put it into `input`, or convert the records of each "
        "instruction by themselves"
    )


def test_rows_that_contradict_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same request with two targets is noise that no training removes."""
    answers = ['{"joy":3,"calm":90}', '{"joy":3,"calm":10}', '{"joy":50,"calm":10}']
    path = records(tmp_path, *(chat(None, "rain", answer) for answer in answers), chat(None, "sun"))
    assert convert(path, tmp_path / "out", "rows", TASK).rows == {"train": 4}
    assert capsys.readouterr().out == (
        "2 of 4 rows contradict an earlier row: the same request with another target; for example "
        f"{path}:2 and {path}:1\n"
    )


def test_targets_on_another_scale_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 and 1 pass as scores from 0 to 100."""
    path = records(tmp_path, chat(None, "rain", '{"joy":0,"calm":1}'), chat(None, "sun", '{"joy":1,"calm":0}'))
    convert(path, tmp_path / "out", "rows", TASK)
    assert capsys.readouterr().out == (
        "target.joy: values from 0 to 1 only, of 0 to 100; are they on another scale?\n"
        "target.calm: values from 0 to 1 only, of 0 to 100; are they on another scale?\n"
    )


def test_csv_is_not_converted_but_imported(tmp_path: Path) -> None:
    """`expected request and target, or messages, ...; got id, text` did not say how to read a CSV file."""
    (tmp_path / "x.CSV").write_text("id,text\n1,rain\n")
    assert refusal(convert, tmp_path / "x.CSV", tmp_path / "out", "rows", TASK) == (
        f"{tmp_path}/x.CSV: expected JSONL or a Hugging Face data set; got CSV; `ppe-lora data build` reads it by a "
        "recipe with data.source.kind: import"
    )


def test_a_generated_text_that_is_none_is_rejected() -> None:
    """A teacher's JSON may escape what the reader of the rows then refuses, hours later."""
    row = Row.model_construct(id="1", request="a quiet\x1b evening", target={"joy": 1, "calm": 2}, language="en")
    filtered = filter_rows([row], TASK, Filters())
    assert [(one.rule, one.evidence) for one in filtered.rejected] == [
        ("no text", "a text holds the control character U+001B")
    ]


def test_results_of_another_engine_are_read_with_a_mark_and_refused_in_utf16(tmp_path: Path) -> None:
    """A redirection in PowerShell writes UTF-16; every line was `no line in the results`."""
    question = Question("m", ({"role": "user", "content": "x"},), {}, None)
    body = {"model": "m", "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}
    line = json.dumps({"custom_id": question.key, "response": {"status_code": 200, "body": body}}) + "\n"
    path = tmp_path / "results.jsonl"
    path.write_text("\ufeff" + line)
    assert [reply.text for reply in read_batch_results([path], [question]).replies] == ["yes"]
    path.write_bytes(line.encode("utf-16"))
    assert refusal(read_batch_results, [path], [question]) == (
        f"{path}:1: expected UTF-8 text; its first bytes are those of UTF-16; save the file as UTF-8: "
        "iconv -f utf-16 -t utf-8 results.jsonl > NEW"
    )


def test_keys_that_are_there_twice_are_not_converted(tmp_path: Path) -> None:
    """In an answer within a text, too: there the last key won."""
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "rain", "prompt": "sun", "completion": "{}"}\n')
    assert refusal(convert, path, tmp_path / "out", "rows", TASK) == f"{path}:1: the key 'prompt' is there twice"
    path = records(tmp_path, chat(None, "rain", '{"joy":3,"calm":90,"joy":4}'))
    assert refusal(convert, path, tmp_path / "out", "rows", TASK).startswith(
        f"{path}:1: the answer is none of the task: unknown key: joy; expected "
    )


def test_ids_of_foreign_records_are_read_by_the_one_rule() -> None:
    """`id: Input should be a valid string` for every record that counts from 1."""
    record = {"request": "rain", "target": {"joy": 3, "calm": 90}, "language": "en"}
    assert [row_of({**record, "id": raw}, TASK).id for raw in (12, "12", "012")] == ["12", "12", "012"]
    assert row_of({**record, "id": ""}, TASK).id == row_of(record, TASK).id
    for raw, words in ((1.0, "expected a text or a whole number"), (True, "expected an id; got a truth value")):
        with pytest.raises(ValueError, match=f"^id: {words}"):
            row_of({**record, "id": raw}, TASK)


def test_noise_of_floating_point_becomes_the_score(tmp_path: Path) -> None:
    """0.1 + 0.2 is 0.30000000000000004 in every program that wrote the file."""
    unit = ScoresTask(keys=("joy",), low=0, high=1, decimals=1)
    record = {"request": "rain", "target": {"joy": 0.30000000000000004}, "language": "en"}
    assert row_of(record, unit).target == {"joy": 0.3}
    for value, words in ((0.31, "1 decimals"), (1.01, "0 to 1"), (True, "a number")):
        with pytest.raises(ValueError, match=f"^joy: expected {words}; got {value}$"):
            row_of({**record, "target": {"joy": value}}, unit)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"joy":1,"calm":2,"joy":1}', Reason.UNKNOWN_KEY),
        ('{"joy":1,"calm":2,"\\ud800":1}', Reason.UNKNOWN_KEY),
        ('{"joy":1,"calm":' + "[" * 900 + "]" * 900 + "}", Reason.NOT_A_NUMBER),
        ('{"joy":1,"calm":' + "[" * 90_000, Reason.NOT_JSON),
        ('{"joy":1,"calm":' + "9" * 5000 + "}", Reason.NOT_JSON),
        ('{"joy":1,"calm":1e999}', Reason.OUT_OF_RANGE),
        ('{"joy":1,"calm":NaN}', Reason.NOT_JSON),
        ('{"joy":1,"calm":1_0}', Reason.NOT_JSON),
        ('{"joy":1,"calm":１０}', Reason.NOT_JSON),
    ],
)
def test_hostile_answers_are_rejections_that_can_be_written(text: str, reason: Reason) -> None:
    """A lone surrogate in a rejection's words ended the writing of predictions; deep lists ended `repr`."""
    found = TASK.parse(text)
    assert isinstance(found, Rejected)
    assert found.reason is reason
    assert found.detail.encode()


def test_every_csv_file_with_texts_is_written_by_one_function() -> None:
    """A table more must not forget the guard; the log of training holds numbers only."""
    package = Path(__file__).parents[2] / "ppe_lora"
    writers = {str(path.relative_to(package)) for path in package.rglob("*.py") if "csv.writer" in path.read_text()}
    assert writers == {"cells.py", "student/callbacks.py", "student/checkpoints.py"}
