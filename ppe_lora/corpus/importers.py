"""Rows from existing files: CSV or JSONL, joined by id, rescaled to the task."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ppe_lora.artifacts import hash_file
from ppe_lora.cells import bounded, id_of, number_of, shown, text_of, without_blanks
from ppe_lora.corpus.joins import Table, check_joins, one_file_remedy
from ppe_lora.corpus.precision import Scale, check_precision, to_task
from ppe_lora.corpus.rows import Row, row_id
from ppe_lora.corpus.tables import Record, file_problem, raise_problems, read_records
from ppe_lora.recipe.schema import ImportSource, SourceFile, SplitName
from ppe_lora.tasks.scores import ScoresTask


class Imported(NamedTuple):
    """What an import found."""

    rows: list[Row]
    """In the order of the file that holds the requests. A request may be empty: filters decide."""
    splits: list[SplitName] | None
    """The official split of each row, or None where the source has none."""
    dropped: dict[str, int]
    """Requests left out because a file has no entry for them, by reason."""
    notes: list[str]
    """What a reader should know: ids that did not meet, scores that fill little of the range."""


class _Import(NamedTuple):
    source: ImportSource
    task: ScoresTask
    section: str
    tables: dict[str, Table]
    columns: dict[str, tuple[str, str]]
    """(file, column) of every column the recipe names, by the key of its section that names it."""

    @property
    def scale(self) -> Scale:
        rescale = self.source.rescale
        return Scale(rescale.low, rescale.high) if rescale else Scale(self.task.low, self.task.high)

    def readers(self) -> dict[str, Callable[[Any], Any]]:
        """What reads the cells of each column, by the key of the recipe that names it; it raises ValueErrors."""
        (low, high), rescale = self.scale, self.source.rescale
        ends = f" ({self.section}.rescale)" if rescale else f" (the task's range; add {self.section}.rescale)"

        def score(raw: Any) -> float:
            return bounded(number_of(raw), low, high, ends)

        named: dict[str, Callable[[Any], Any]] = {"request": text_of, "split": self._split_of}
        return {key: named.get(key, score) for key in self.columns}

    def _split_of(self, raw: Any) -> SplitName:
        names = self.source.split_names
        name = str(raw) if type(raw) is int else raw
        if not isinstance(name, str) or name not in names:
            known = ", ".join(names)
            raise ValueError(f"expected a split of {self.section}.split_names ({known}); got {shown(raw)}")
        return names[name]


def source_paths(source: ImportSource, section: str) -> dict[str, Path]:
    """The files of an import by their names in the recipe, in whose section `section` they are.

    Raises:
        DataError: A file is missing, is neither CSV nor JSONL, or has no column that the recipe uses.
    """
    paths = {}
    problems = _unused(source, section)
    for name, file in source.files.items():
        paths[name] = path = Path(source.source_dir) / file.path
        if not path.exists():
            problems.append(
                f"{section}.files.{name}.path: expected a file; got {path}, which does not exist; "
                f"set {section}.source_dir=FOLDER to the folder it is in"
            )
        elif problem := file_problem(path):
            problems.append(f"{section}.files.{name}.path: {problem}")
    raise_problems(problems)
    return paths


def input_hashes(source: ImportSource, section: str) -> dict[str, str]:
    """Content hashes of the files of an import, by their names in the recipe."""
    return {name: hash_file(path) for name, path in source_paths(source, section).items()}


def read_import(source: ImportSource, task: ScoresTask, section: str) -> Imported:
    """Read, join and rescale the files of an import.

    Every request with an entry in all files becomes a row. A score x on the source's scale becomes
    low + (x - rescale.low) / (rescale.high - rescale.low) * span in task units, rounded to the task's decimals.

    Args:
        source: The files and their columns.
        task: The keys, range and decimals of the targets.
        section: The recipe section of the import, for messages.

    Raises:
        DataError: A file or column is missing, an id is given twice or does not meet its like in another file, a cell
            is not what it should be, a value is outside the scale, rounding takes too much of a score, or a split has
            no name in the recipe. Problems are collected; those in a file start with `file:line`.
    """
    paths = source_paths(source, section)
    tables = {name: _read_table(name, path, source, section) for name, path in paths.items()}
    given = _Import(source, task, section, tables, _columns(source, tables, section))
    request_file = given.columns["request"][0]
    notes = check_joins(tables, request_file, section) + _misread(given)
    dropped: dict[str, int] = {}
    readers, scale = given.readers(), given.scale
    found: list[dict[str, Any]] = []
    problems: list[str] = []
    for identity in tables[request_file].records:
        absent = [name for name in tables if identity not in tables[name].records]
        if absent:
            reason = f"no entry in {', '.join(absent)}"
            dropped[reason] = dropped.get(reason, 0) + 1
        elif entry := _entry(given, readers, identity, problems):
            found.append(entry)
    raise_problems(problems)
    scores = {key: [values[f"target.{key}"] for values in found] for key in task.keys}
    problems, narrow = check_precision(scores, task, scale if source.rescale else None, section)
    raise_problems(problems)
    splits = [values["split"] for values in found] if source.split else None
    return Imported([_row(values, scale, given) for values in found], splits, dropped, notes + narrow)


def _unused(source: ImportSource, section: str) -> list[str]:
    """Files of which nothing is read: a join by id only takes rows away for them."""
    named = [source.request, *source.target.values(), *([source.split] if source.split else [])]
    used = {_place(name, source.files)[0] for name in named}
    unused = [name for name in source.files if name not in used]
    if not unused:
        return []
    remedy = one_file_remedy(source.files, section) or f"delete {', '.join(unused)}, or name a column of it"
    return [
        f"{section}.files: expected files of which a column is used; got {', '.join(unused)} without one; files are "
        f"joined by id, not put one after the other; {remedy}"
    ]


def _place(name: str, files: Iterable[str]) -> tuple[str, str]:
    """File and column of `FILE.COLUMN`; both may have dots in their names."""
    file = max((file for file in files if name.startswith(f"{file}.")), key=len, default=name.partition(".")[0])
    return file, name[len(file) + 1 :]


def _read_table(name: str, path: Path, source: ImportSource, section: str) -> Table:
    records: dict[str, Record] = {}
    bare: dict[str, str] = {}
    problems = []
    column = source.files[name].id
    found = list(read_records(path, source.files[name].encoding, f"{section}.files.{name}.encoding"))
    named = column != SourceFile.model_fields["id"].default
    if len(source.files) == 1 and not named and not any(column in record.values for record in found):
        return Table(path, {f"line {record.line}": record for record in found})
    for record in found:
        where = f"{path}:{record.line}"
        if column not in record.values:
            problems.append(f"{where}: expected a column {column!r} to join by; got {', '.join(record.values)}")
            if not records:
                break
            continue
        try:
            key = id_of(record.values[column])
        except ValueError as error:
            problems.append(f"{where}: {column}: {error}")
            continue
        twin = bare.setdefault(without_blanks(key), key)
        if key in records:
            problems.append(f"{where}: id {key!r} is already used in line {records[key].line}")
        elif twin != key:
            problems.append(
                f"{where}: id {key!r} is {twin!r} of line {records[twin].line} but for blanks or invisible signs; make "
                "them one or two"
            )
        records.setdefault(key, record)
    raise_problems(problems)
    return Table(path, records)


def _columns(source: ImportSource, tables: Mapping[str, Table], section: str) -> dict[str, tuple[str, str]]:
    """As `_Import.columns`. A column of JSONL is there if one record has it."""
    named = {"request": source.request}
    named |= {f"target.{key}": column for key, column in source.target.items()}
    if source.split:
        named["split"] = source.split
    columns = {}
    problems = []
    for key, name in named.items():
        columns[key] = file, column = _place(name, tables)
        if file not in tables or not column:
            problems.append(f"{section}.{key}: expected FILE.COLUMN with a file of {', '.join(tables)}; got {name!r}")
            continue
        path, records = tables[file]
        if not any(column in record.values for record in records.values()):
            present = ", ".join(dict.fromkeys(name for record in records.values() for name in record.values))
            problems.append(f"{section}.{key}: expected a column of {path} ({present}); got {column!r}")
    raise_problems(problems)
    return columns


def _misread(given: _Import) -> list[str]:
    """A note on requests with the sign that decoders write for bytes they do not know."""
    file, column = given.columns["request"]
    path, records = given.tables[file]
    lines = [record.line for record in records.values() if "\ufffd" in str(record.values.get(column))]
    if not lines:
        return []
    return [
        f"{path}:{lines[0]}: {column}: U+FFFD stands in {len(lines)} requests, for characters that were lost where the "
        "file was made"
    ]


def _entry(
    given: _Import, readers: Mapping[str, Callable[[Any], Any]], identity: str, problems: list[str]
) -> dict[str, Any] | None:
    """The values of an id by the recipe's keys of their columns; None with what is wrong added to `problems`."""
    values = {}
    for key, (file, column) in given.columns.items():
        path, records = given.tables[file]
        record = records[identity]
        if column not in record.values:
            problems.append(f"{path}:{record.line}: expected the key {column!r}; got {', '.join(record.values)}")
            continue
        try:
            values[key] = readers[key](record.values[column])
        except ValueError as error:
            problems.append(f"{path}:{record.line}: {column}: {error}")
    return values if len(values) == len(given.columns) else None


def _row(values: Mapping[str, Any], scale: Scale, given: _Import) -> Row:
    request, language = values["request"], given.source.language
    target = {key: to_task(values[f"target.{key}"], scale, given.task) for key in given.task.keys}
    # Not validated: an empty request must reach the filters to be rejected and kept with its reason.
    identity = row_id(request, target, language, None)
    return Row.model_construct(id=identity, request=request, target=target, language=language)
