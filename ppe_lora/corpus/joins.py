"""Which ids of the files of an import meet, and what is said of those that do not."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ppe_lora.cells import likeness, shown
from ppe_lora.corpus.tables import Record, raise_problems

_EXAMPLES = 3
_FEW = 2
_MOST_MISSING = 0.1
_SPLITS = frozenset({"train", "valid", "validation", "dev", "test"})


class Table(NamedTuple):
    """A file of an import, by id."""

    path: Path
    records: Mapping[str, Record]

    def at(self, key: str) -> str:
        """An id with its line, for messages."""
        return f"{shown(key)} (line {self.records[key].line})"


def check_joins(tables: Mapping[str, Table], request_file: str, section: str) -> list[str]:
    """Compare the ids of every file with those of the file of the requests.

    Returns:
        For each file whose ids do not all meet: how many do, with examples of the others.

    Raises:
        DataError: Ids that are alike but for their writing do not meet; or, of both files, more than two ids and more
            than a tenth of the smaller file's do not, or none do.
    """
    requests = tables[request_file]
    notes: list[str] = []
    problems: list[str] = []
    for name, other in tables.items():
        met = len(requests.records.keys() & other.records.keys())
        left = [key for key in requests.records if key not in other.records]
        right = [key for key in other.records if key not in requests.records]
        words = (
            f"{met} ids meet, of {_size(requests)} in {requests.path.name} and {_size(other)} in {other.path.name}; "
            f"{_alone(requests, left)}{_alone(other, right)}"
        )
        if alike := _alike(requests, left, other, right):
            problems += alike
        elif not met or min(len(left), len(right)) > max(_FEW, _MOST_MISSING * min(map(_size, (requests, other)))):
            columns = f"check {section}.files.{request_file}.id and {section}.files.{name}.id"
            problems.append(f"{section}.files.{name}: {words}{one_file_remedy(tables, section) or columns}")
        elif left or right:
            notes.append(f"{section}.files.{name}: {words}".removesuffix("; "))
    if not problems and not set.intersection(*(set(table.records) for table in tables.values())):
        problems.append(f"{section}.files: expected ids that all of {', '.join(tables)} have; got none")
    raise_problems(problems)
    return notes


def one_file_remedy(files: Iterable[str], section: str) -> str | None:
    """What to do where files are named after splits: they are parts of one table and have no ids in common."""
    if len(_SPLITS & set(files)) < 2:
        return None
    return (
        "put the rows of all files into one file, with a column that says train, valid or test, and name it in "
        f"{section}.split"
    )


def _size(table: Table) -> int:
    return len(table.records)


def _alone(table: Table, keys: list[str]) -> str:
    more = ", ..." if len(keys) > _EXAMPLES else ""
    return f"only in {table.path.name}: {', '.join(map(table.at, keys[:_EXAMPLES]))}{more}; " if keys else ""


def _alike(left: Table, left_keys: list[str], right: Table, right_keys: list[str]) -> list[str]:
    twins = {likeness(key): key for key in right_keys}
    return [
        f"{left.path}:{left.records[key].line}: id {shown(key)} and id {shown(twin)} in "
        f"{right.path}:{right.records[twin].line} differ in their writing only, so they do not meet; write both alike"
        for key in left_keys
        if (twin := twins.get(likeness(key))) is not None
    ]
