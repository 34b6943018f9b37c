"""What comes from outside, each kind read by one rule: JSON, texts, numbers, ids, and the cells of CSV files.

Whatever could be read in two ways is refused, never guessed. Errors are `ValueError`s in words; who reads a file adds
`file:line`.
"""

import csv
import io
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator

MAX_DEPTH = 100
"""Deepest JSON that is read: lists and objects inside each other."""

# ---------------------------------------------------------------------------------------------------------------- JSON


def parse_json(text: str | bytes) -> Any:
    """Read one JSON value, by the standard and no more: what readers understand in different ways is refused.

    Raises:
        ValueError: It is no JSON, is not UTF-8, an object has a key twice, a number is NaN or infinite or has too many
            digits, a text holds a lone surrogate, or it is nested deeper than `MAX_DEPTH`.

    Example:
        >>> parse_json('{"a": [1, 2.5]}')
        {'a': [1, 2.5]}
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: the key 'a' is there twice
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_float=_decimal, parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 text; got byte {error.object[error.start]:#04x}") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"not JSON: {error.msg} ({line}column {error.colno})") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value)
    if not text.isascii() and (found := _SURROGATE.search(text)):
        raise ValueError(_half(found.group()))
    # Two escaped halves make a whole character, so the value decides.
    if _ESCAPED_HALF.search(text) and (found := _SURROGATE.search(json.dumps(value, ensure_ascii=False))):
        raise ValueError(_half(found.group()))
    return value


_TOO_DEEP = f"lists and objects stand inside each other more than {MAX_DEPTH} deep"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shown(twice)} is there twice")
    return made


def _integer(text: str) -> int:
    if math.isinf(float(text)):
        raise ValueError(f"a number of {len(text.lstrip('-')):,} digits is too large")
    return int(text)


def _decimal(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {shorten(text)} is too large")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [below for node in level for below in _below(node)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _below(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


# ------------------------------------------------------------------------------------------------ texts, numbers, ids


def text_of(raw: Any) -> str:
    """A text as it is; an empty cell (null) is the empty text.

    Raises:
        ValueError: It is of another type, or holds what is no text: lone surrogates, control characters other than
            white space.

    Example:
        >>> text_of(["rain"])
        Traceback (most recent call last):
        ValueError: expected a text; got a list: ['rain']
    """
    if raw is None:
        return ""
    if not isinstance(raw, str):
        raise ValueError(f"expected a text; got {described(raw)}")
    if found := _NO_TEXT.search(raw):
        sign = found.group()
        raise ValueError(_half(sign) if sign >= "\ud800" else f"a text holds the control character U+{ord(sign):04X}")
    return raw


def request_of(raw: Any) -> str:
    """`text_of` of something that can be read: not of blanks and invisible characters only.

    Raises:
        ValueError: As `text_of`, or there is nothing to see.
    """
    text = text_of(raw)
    if is_blank(text):
        raise ValueError(f"expected a text; got {'nothing' if not text else 'blanks only: ' + shown(text)}")
    return text


Text = Annotated[str, AfterValidator(text_of)]
Request = Annotated[str, AfterValidator(request_of)]
"""A text, and one in a person's words, for sections and bodies."""


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: white space, control and format characters (zero width), fillers.

    Example:
        >>> is_blank("\\u200b\\u3000"), is_blank("!")
        (True, False)
    """
    if _PLAINLY_VISIBLE.search(text):  # nearly always, and ten times faster
        return False
    return all(unicodedata.category(sign)[0] in "ZC" or sign in _INVISIBLE for sign in text)


def number_of(raw: Any) -> float:
    """A finite number: a JSON number, or a text of ASCII digits with an optional sign, point and exponent.

    Blanks around it are dropped. `1_0`, `１０`, `0x10`, `Infinity`, `1,234`, `3,5` and `45%` are no numbers: other
    programs read them otherwise or not at all. A truth value is none either.

    Raises:
        ValueError: It is none; the words name the remedy where the writing is a known one.

    Example:
        >>> number_of(" 1e-1 "), number_of(3)
        (0.1, 3.0)
        >>> number_of("3,5")
        Traceback (most recent call last):
        ValueError: expected a number; got '3,5'; write the decimals after a point and no thousands separators
    """
    if isinstance(raw, str):
        if not _NUMBER.fullmatch(raw.strip()):
            raise ValueError(f"expected a number; got {shown(raw) if raw.strip() else 'an empty cell'}{_remedy(raw)}")
    elif isinstance(raw, bool) or not isinstance(raw, int | float):
        raise ValueError(f"expected a number; got {described(raw)}")
    try:
        value = float(raw)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number; got {shown(raw)}")
    return value


def bounded(value: float, low: float, high: float, ends: str = "") -> float:
    """A value of a scale; one that is off its ends by floating-point noise (1e-9 of its width) is the end.

    Args:
        value: What was read.
        low: The lower end.
        high: The upper end.
        ends: Whose ends they are, for the message.

    Raises:
        ValueError: It is outside.

    Example:
        >>> bounded(1.0000000000000002, 0, 1)
        1.0
    """
    noise = 1e-9 * (high - low)
    if not low - noise <= value <= high + noise:
        raise ValueError(f"expected {digits(low)} to {digits(high)}{ends}; got {digits(value)}")
    return min(max(value, float(low)), float(high))


def digits(value: float) -> str:
    """A number with all its digits and without `.0`.

    Example:
        >>> digits(500.0), digits(1.0000000000000002)
        ('500', '1.0000000000000002')
    """
    return repr(value).removesuffix(".0")


def id_of(raw: Any) -> str:
    """An id, compared as it is written: a text, blanks and leading zeros included; a whole JSON number by its digits.

    Raises:
        ValueError: It is empty or of another type. 1.0 is refused: some programs write it for 1, others do not.

    Example:
        >>> id_of(7), id_of("07")
        ('7', '07')
    """
    if isinstance(raw, int) and not isinstance(raw, bool):
        return str(raw)
    if isinstance(raw, float):
        raise ValueError(f"expected a text or a whole number; got {raw!r}; write the id as a text")
    if raw is not None and not isinstance(raw, str):
        raise ValueError(f"expected an id; got {described(raw)}")
    text = text_of(raw)
    if is_blank(text):
        raise ValueError(f"expected an id; got {'an empty cell' if not text else 'blanks only: ' + shown(text)}")
    return text


def without_blanks(text: str) -> str:
    """A text without what cannot be seen in it: blanks around it, signs of zero width anywhere."""
    if text.isascii():
        return text.strip()
    return "".join(sign for sign in text if unicodedata.category(sign) != "Cf").strip()


def likeness(text: str) -> str:
    """What is left of an id without its writing: equal for ids that are alike but for blanks, signs of zero width,
    width, case, leading zeros or a `.0`.

    Example:
        >>> likeness(" 01.0 ") == likeness("1"), likeness("Ａ1") == likeness("a1")
        (True, True)
    """
    plain = "".join(unicodedata.normalize("NFKC", without_blanks(text)).casefold().split())
    return repr(number_of(plain)) if _NUMBER.fullmatch(plain) and len(plain) < 16 else plain


def described(raw: Any) -> str:
    """A value of JSON in words, with its type."""
    names = {bool: "a truth value", list: "a list", dict: "an object", str: "a text"}
    names |= dict.fromkeys((int, float), "a number")
    return f"{names[type(raw)]}: {shown(raw)}" if type(raw) in names else "nothing" if raw is None else shown(raw)


def shown(raw: Any) -> str:
    """A value as it stands in messages: its `repr`, cut; every character can be written."""
    if isinstance(raw, int) and abs(raw) > 10**60:
        return "a number of more than 60 digits"
    try:
        return shorten(repr(raw))
    except RecursionError:
        return "lists in lists without end"


def shorten(text: str) -> str:
    """At most 80 characters of a text."""
    return text if len(text) <= 80 else f"{text[:77]}..."


_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_NO_TEXT = re.compile("[\ud800-\udfff\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {chr(c) for c in range(0xFE00, 0xFE10)}
_PLAINLY_VISIBLE = re.compile("[!-~ぁ-ヿ一-鿿]")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_GAP = "' \u00a0\u202f"
_REMEDIES = (
    (rf"[+-]?\d[\d.,{_GAP}]*,[\d.,{_GAP}]*", "write the decimals after a point and no thousands separators"),
    (rf"[+-]?\d+(?:[{_GAP}]\d{{3}})+(?:\.\d+)?", "write it without thousands separators"),
    (r"[+-]?[\d.,]+ ?[%％]", "write it without the sign"),
    (r"[+-]?[0-9][0-9_.]*", "write it without other signs between the digits"),
    (r"[+\-−＋－]?[\d.．]+", "write it with the digits 0 to 9, `.` and `-`"),
)


def _remedy(raw: str) -> str:
    found = (words for pattern, words in _REMEDIES if re.fullmatch(pattern, raw.strip()))
    return "".join(f"; {words}" for words in [*found][:1])


def _half(sign: str) -> str:
    return f"a text holds half of a character (the lone surrogate U+{ord(sign):04X})"


# ------------------------------------------------------------------------------------------------------------ CSV cells


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """CSV that a spreadsheet shows and never runs: every cell as `guarded` makes it."""
    text = io.StringIO()
    csv.writer(text).writerows([guarded(cell) for cell in row] for row in rows)
    return text.getvalue()


def guarded(cell: Any) -> Any:
    """A cell with an apostrophe before what a spreadsheet would take for a formula; numbers stay numbers.

    Example:
        >>> guarded("=1+1"), guarded("-5"), guarded(-5), guarded("'=")
        ("'=1+1", '-5', -5, "''=")
    """
    if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def unguarded(cell: str) -> str:
    """The cell that `guarded` was given.

    Example:
        >>> unguarded("'=1+1"), unguarded("'tis"), unguarded("-5")
        ('=1+1', "'tis", '-5')
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")
