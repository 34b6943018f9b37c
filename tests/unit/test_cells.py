"""What comes from outside is read by one rule each; what could be read in two ways is refused with words."""

import csv
import doctest
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppe_lora import cells
from ppe_lora.cells import csv_text, id_of, is_blank, likeness, number_of, parse_json, request_of, text_of, unguarded


def refused(read: Any, raw: Any) -> str:
    with pytest.raises(ValueError, match=r".+") as error:
        read(raw)
    return str(error.value)


def test_the_examples_hold() -> None:
    """Examples of the one home of these rules must not be wrong."""
    assert doctest.testmod(cells).failed == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ('{"b": [{"a": 1, "\\u0061": 1}]}', "the key 'a' is there twice"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ("[-Infinity]", "-Infinity is no number of JSON"),
        ("1e999", "the number 1e999 is too large"),
        ("9" * 5000, "a number of 5,000 digits is too large"),
        ('{"a":' * 3000 + "1" + "}" * 3000, "lists and objects stand inside each other more than 100 deep"),
        ('{"a":' * 101 + "1" + "}" * 101, "lists and objects stand inside each other more than 100 deep"),
        ("[" * 200_000, "lists and objects stand inside each other more than 100 deep"),
        ('{"a": "\\ud83d"}', "a text holds half of a character (the lone surrogate U+D83D)"),
        ('{"\\uDE00": 1}', "a text holds half of a character (the lone surrogate U+DE00)"),
        ('"\ud83d"', "a text holds half of a character (the lone surrogate U+D83D)"),
        (b'{"a": "\x89J"}', "expected UTF-8 text; got byte 0x89"),
        ('{"a": 1,}', "not JSON: Expecting property name enclosed in double quotes (column 9)"),
        ('{"a": 1}\n{"a": 2}', "not JSON: Extra data (line 2, column 1)"),
        ("", "not JSON: Expecting value (column 1)"),
    ],
)
def test_json_that_readers_understand_in_different_ways_is_refused(text: str | bytes, expected: str) -> None:
    """The last of two keys wins in Python, the first elsewhere; 3,000 levels are a RecursionError, 5,000 digits an
    advice about `sys.set_int_max_str_digits`."""
    assert refused(parse_json, text) == expected


def test_json_by_the_standard_is_read() -> None:
    """Limits must not refuse what is right: pairs of escapes, a hundred levels, brackets in texts."""
    assert parse_json('{"a": "\\ud83d\\ude00", "b": [1, -0.5, 1e3, true, null]}') == {
        "a": "😀",
        "b": [1, -0.5, 1000.0, True, None],
    }
    assert parse_json("[" * 100 + "]" * 100)
    assert parse_json(json.dumps("[" * 500)) == "[" * 500
    assert parse_json('"雨"'.encode()) == "雨"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(),
        lambda s: st.lists(s) | st.dictionaries(st.text(), s),
    )
)
def test_what_json_writes_comes_back(value: Any) -> None:
    """The strict reader is a JSON reader."""
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False)) == value


@pytest.mark.parametrize(
    "raw", ["1_0", "１０", "Infinity", "nan", "0x10", "", " ", "1 0", "−5", "1e", ".", "1,5 €", "TRUE"]
)
def test_numbers_by_python_only_are_none(raw: str) -> None:
    """`float("1_0")` is 10 and `float("１０")` is 10 in Python, and nothing in the spreadsheet they come from."""
    assert refused(number_of, raw).startswith("expected a number; got ")


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("1e3", 1000.0),
        (" 5 ", 5.0),
        ("+5", 5.0),
        ("-5.50", -5.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("05", 5.0),
        (7, 7.0),
        ("\u00a05", 5.0),
    ],
)
def test_numbers_as_programs_write_them_are_read(raw: Any, value: float) -> None:
    """pandas writes 1e-05; spreadsheets pad with blanks."""
    assert number_of(raw) == value


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("1,234", "expected a number; got '1,234'; write the decimals after a point and no thousands separators"),
        ("3,5", "expected a number; got '3,5'; write the decimals after a point and no thousands separators"),
        ("1.234,5", "expected a number; got '1.234,5'; write the decimals after a point and no thousands separators"),
        ("1 234", "expected a number; got '1 234'; write it without thousands separators"),
        ("45%", "expected a number; got '45%'; write it without the sign"),
        ("１０", "expected a number; got '１０'; write it with the digits 0 to 9, `.` and `-`"),
        ("1_0", "expected a number; got '1_0'; write it without other signs between the digits"),
        ("high", "expected a number; got 'high'"),
        (" ", "expected a number; got an empty cell"),
        (True, "expected a number; got a truth value: True"),
        (None, "expected a number; got nothing"),
        ([1], "expected a number; got a list: [1]"),
        ("1e999", "expected a finite number; got '1e999'"),
        (10**400, "expected a finite number; got a number of more than 60 digits"),
    ],
)
def test_a_cell_that_is_no_number_is_said_with_its_remedy(raw: Any, expected: str) -> None:
    """`3,5` is 3.5 in one country and 35 in none; only who wrote it knows."""
    assert refused(number_of, raw) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (["rain"], "expected a text; got a list: ['rain']"),
        (True, "expected a text; got a truth value: True"),
        ({"a": 1}, "expected a text; got an object: {'a': 1}"),
        (7, "expected a text; got a number: 7"),
        ("a\x00b", "a text holds the control character U+0000"),
        ("a\x9cb", "a text holds the control character U+009C"),
        ("a\ud800", "a text holds half of a character (the lone surrogate U+D800)"),
    ],
)
def test_a_cell_is_not_its_str(raw: Any, expected: str) -> None:
    """A list was trained as Python writes it; a lone surrogate ended in a UnicodeEncodeError."""
    assert refused(text_of, raw) == expected


@pytest.mark.parametrize(
    "blank", ["", " ", "\u200b", "\u200b\u200d\ufeff", "\u3000\t\n", "\u3164", "\u2060\ufe0f", "\u2800"]
)
def test_what_shows_nothing_is_no_request(blank: str) -> None:
    """Zero-width texts were rows."""
    assert is_blank(blank)
    assert refused(request_of, blank).startswith("expected a text; got ")


@pytest.mark.parametrize("text", ["!", "None", "雨\u200b", "👩\u200d👩", "a\tb\r\nc\u0085\u2028", "️⃣1"])
def test_what_people_write_is_a_request(text: str) -> None:
    """Joined emoji, line ends and a person's "!" are texts."""
    assert request_of(text) == text


def test_ids_are_compared_as_they_are_written() -> None:
    """`str()` made 1 and 1.0, True and "True" out of numbers and truth values."""
    assert (id_of(1), id_of("1"), id_of("01"), id_of(" 1")) == ("1", "1", "01", " 1")
    assert refused(id_of, 1.0) == "expected a text or a whole number; got 1.0; write the id as a text"
    assert refused(id_of, True) == "expected an id; got a truth value: True"
    assert refused(id_of, "") == "expected an id; got an empty cell"
    assert refused(id_of, None) == "expected an id; got an empty cell"
    assert refused(id_of, "\u200b") == "expected an id; got blanks only: '\\u200b'"


def test_ids_that_are_alike_are_found() -> None:
    """What did not meet is told with its twin, or half of a file is left out without a cause."""
    assert len({likeness(text) for text in ("1", "1.0", "01", " 1 ", "１", "1.00", "+1", "\ufeff1\u200b")}) == 1
    assert len({likeness(text) for text in ("a", "b", "1a", "10", "1")}) == 5
    assert likeness("12345678901234567890") != likeness("12345678901234567891")


@given(st.lists(st.text(st.sampled_from("'=+-@\t\r\n５＝a1,\"")), min_size=1))
def test_csv_cells_come_back(texts: list[str]) -> None:
    """An apostrophe that a person wrote must not be taken for ours."""
    found = next(csv.reader(io.StringIO(csv_text([texts]), newline="")))
    assert [unguarded(cell) for cell in found] == texts


def test_csv_cells_run_nothing_and_numbers_stay_numbers() -> None:
    """`=HYPERLINK(...)` in a request runs where somebody opens `worst_cases.csv`."""
    assert csv_text([["=1+1", "+1-1", "-a", "@x", "\tx", "-5", "+0.5", -5, "'=x", "'tis", None]]) == (
        "'=1+1,'+1-1,'-a,'@x,'\tx,-5,+0.5,-5,''=x,'tis,\r\n"
    )
