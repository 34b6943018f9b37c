"""Files of records, CSV or JSONL, with the line of every record for the errors of whoever reads them."""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ppe_lora.cells import parse_json, shown, unguarded
from ppe_lora.corpus.encodings import open_text, undecodable
from ppe_lora.errors import DataError

_SHOWN = 20
_CSV = (".csv", ".tsv", ".tab")
_JSONL = (".jsonl", ".ndjson")
_DELIMITERS = (",", ";", "\t", "|")


class Record(NamedTuple):
    """One entry of a source file and the line it starts in."""

    line: int
    values: Mapping[str, Any]


def is_csv(path: Path) -> bool:
    """Whether a file's name says that it has columns."""
    return path.suffix.lower() in _CSV


def is_jsonl(path: Path) -> bool:
    """Whether a file's name says that it holds a JSON object a line."""
    return path.suffix.lower() in _JSONL


def file_problem(path: Path) -> str | None:
    """What keeps a path from being a file of records, in words after "expected ..."; None if nothing does."""
    if path.is_dir():
        return f"expected a file; got the folder {path}"
    if path.exists() and not path.is_file():
        return f"expected a file; got the pipe or device {path}"
    if path.suffix.lower() == ".json":
        return f"expected .csv, .tsv or .jsonl; got {path}; {_ONE_A_LINE}"
    if not is_csv(path) and not is_jsonl(path):
        return f"expected .csv, .tsv or .jsonl; got {path}"
    return None


_ONE_A_LINE = "write every object on a line of its own, without brackets around them: jq -c '.[]' FILE > FILE.jsonl"


def read_records(path: Path, encoding: str = "utf-8", key: str | None = None) -> Iterator[Record]:
    """The entries of a `.csv` or `.tsv` file, else of a JSONL file, in order. CSV values are texts.

    The columns of a CSV file are separated by what its header has most of: comma, semicolon, tab or bar; a first line
    `sep=;` decides. Blanks around column names are dropped, and so are columns without a name and records without
    anything in them. What `cells.guarded` put before a cell is taken away.

    Args:
        path: The file.
        encoding: What its text is in.
        key: The recipe's key of the encoding, where it has one.

    Raises:
        DataError: Lines are not what the format asks for (all are collected), two columns have one name, the text is
            in another encoding, or there is no entry.
    """
    empty = True
    problems: list[str] = []
    try:
        with open_text(path, encoding, key) as file:
            read = _csv if is_csv(path) else _jsonl
            for record in read(file, path, problems):
                empty = False
                yield record
    except UnicodeError:
        raise undecodable(path, encoding, key) from None
    raise_problems(problems)
    if empty:
        raise DataError(f"{path}: expected at least one entry; got an empty file")


def raise_problems(problems: Sequence[str]) -> None:
    """Raise a DataError that lists the first 20 problems and counts the rest; nothing without problems."""
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise DataError("\n".join([*problems[:_SHOWN], *more]))


def _csv(file: TextIO, path: Path, problems: list[str]) -> Iterator[Record]:
    before, header_line = _first_line(file)
    if not header_line:
        return
    delimiter = "\t" if path.suffix.lower() in (".tsv", ".tab") else _delimiter(header_line)
    if named := re.fullmatch(r'"?sep=(.)"?', header_line.strip("\ufeff\r\n"), re.IGNORECASE):
        skipped, header_line = _first_line(file)
        before, delimiter = before + skipped + 1, named[1]
    reader = csv.reader(chain([header_line], file), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        line = before + reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            problems.append(_not_csv(path, line, before + reader.line_num, str(error)))
            return
        if cells is None:
            return
        if not names:
            names = _names(cells, f"{path}:{line}")
        elif "".join(cells).strip():
            record = dict(zip(names, map(unguarded, cells), strict=False))
            record.pop("", None)
            if any(names[len(cells) :]) or any(cell.strip() for cell in cells[len(names) :]):
                found = "fewer" if any(names[len(cells) :]) else "more"
                problems.append(f"{path}:{line}: expected {len(names)} fields as in the header; got {found}")
            else:
                yield Record(line, record)


def _first_line(file: TextIO) -> tuple[int, str]:
    """The number of blank lines that come next, and the line after them; nothing at the end of a file."""
    blank = 0
    for line in file:
        if line.strip("\ufeff\r\n\t "):
            return blank, line
        blank += 1
    return blank, ""


def _delimiter(header: str) -> str:
    bare = re.sub(r'"[^"]*"', "", header)
    return max(_DELIMITERS, key=bare.count)


def _names(cells: Sequence[str], where: str) -> list[str]:
    names = [unguarded(cell).strip("\ufeff\r\n\t ") for cell in cells]
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        places = " and ".join(str(i) for i, name in enumerate(names, 1) if name == twice[0])
        raise DataError(f"{where}: the column name {shown(twice[0])} is there twice (columns {places}); rename one")
    if not any(names):
        raise DataError(f"{where}: expected a header with the names of the columns; got {len(names)} empty cells")
    return names


def _not_csv(path: Path, first: int, last: int, problem: str) -> str:
    if problem.startswith("unexpected end of data"):
        return f"{path}:{first}: not CSV: a quote that opens in this line or after it is never closed"
    if problem.startswith("field larger than"):
        limit = csv.field_size_limit()
        return f"{path}:{first}: not CSV: a cell is longer than {limit:,} characters; is a quote never closed?"
    return f"{path}:{last}: not CSV: {problem}"


def _jsonl(file: TextIO, path: Path, problems: list[str]) -> Iterator[Record]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            values = parse_json(line)
        except ValueError as error:
            if line.strip() in ("[", "[{"):
                raise DataError(f"{where}: expected a JSON object; got the start of a list; {_ONE_A_LINE}") from None
            problems.append(f"{where}: {error}")
            continue
        if isinstance(values, dict):
            yield Record(number, values)
        else:
            remedy = f"; {_ONE_A_LINE}" if isinstance(values, list) and values and isinstance(values[0], dict) else ""
            problems.append(f"{where}: expected a JSON object; got {type(values).__name__}{remedy}")
