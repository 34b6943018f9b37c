"""Files of records, CSV or JSONL, with the line of every record for the errors of whoever reads them."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ppe_lora.errors import DataError

_SHOWN = 20


class Record(NamedTuple):
    """One entry of a source file and the line it starts in."""

    line: int
    values: Mapping[str, Any]


def read_records(path: Path) -> Iterator[Record]:
    """The entries of a `.csv` file, else of a JSONL file, in order. CSV values are texts.

    Raises:
        DataError: A line is not what the format asks for, the text is not UTF-8, or there is no entry.
    """
    empty = True
    try:
        for record in _csv(path) if path.suffix == ".csv" else _jsonl(path):
            empty = False
            yield record
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text; got byte {error.object[error.start]:#04x}") from None
    if empty:
        raise DataError(f"{path}: expected at least one entry; got an empty file")


def number_of(raw: Any) -> float | None:
    """A finite number from a number or its text, else None. A truth value is no number."""
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        return None
    try:
        value = float(raw)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def raise_problems(problems: Sequence[str]) -> None:
    """Raise a DataError that lists the first 20 problems and counts the rest; nothing without problems."""
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise DataError("\n".join([*problems[:_SHOWN], *more]))


def _csv(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for values in reader:
                line = reader.line_num - sum(str(value).count("\n") for value in values.values())
                if None in values or None in values.values():
                    raise DataError(
                        f"{path}:{line}: expected {len(reader.fieldnames or ())} fields as in the header; got "
                        f"{'more' if None in values else 'fewer'}"
                    )
                yield Record(line, values)
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from None


def _jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number}: not JSON: {error}") from None
            if not isinstance(values, dict):
                raise DataError(f"{path}:{number}: expected a JSON object; got {type(values).__name__}")
            yield Record(number, values)
