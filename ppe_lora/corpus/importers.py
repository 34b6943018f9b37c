"""Rows from existing files: CSV or JSONL, joined by id, rescaled to the task."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ppe_lora.artifacts import hash_file
from ppe_lora.corpus.rows import Row, row_id
from ppe_lora.corpus.tables import Record, number_of, raise_problems, read_records
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import ImportSource, SplitName
from ppe_lora.tasks.scores import ScoresTask


class Imported(NamedTuple):
    """What an import found."""

    rows: list[Row]
    """In the order of the file that holds the requests. A request may be empty: filters decide."""
    splits: list[SplitName] | None
    """The official split of each row, or None where the source has none."""
    dropped: dict[str, int]
    """Requests left out because a file has no entry for them, by reason."""


def source_paths(source: ImportSource, section: str) -> dict[str, Path]:
    """The files of an import by their names in the recipe, in whose section `section` they are.

    Raises:
        DataError: A file is missing, or is neither CSV nor JSONL.
    """
    paths = {}
    problems = []
    for name, file in source.files.items():
        path = Path(source.source_dir) / file.path
        paths[name] = path
        if not path.is_file():
            problems.append(
                f"{section}.files.{name}.path: expected a file; got {path}, which does not exist; "
                f"set {section}.source_dir=FOLDER to the folder it is in"
            )
        elif path.suffix not in (".csv", ".jsonl"):
            problems.append(f"{section}.files.{name}.path: expected .csv or .jsonl; got {path}")
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
        DataError: A file or column is missing, an id is given twice, a value is no number or outside the scale, or a
            split has no name in the recipe. Problems are collected; those in a file start with `file:line`.
    """
    paths = source_paths(source, section)
    tables = {name: _read_table(path, source.files[name].id) for name, path in paths.items()}
    columns = _columns(source, tables, paths, section)
    request_file = columns["request"][0]
    dropped: dict[str, int] = {}
    rows: list[Row] = []
    splits: list[SplitName] = []
    problems: list[str] = []
    for key, record in tables[request_file].items():
        absent = [name for name in tables if key not in tables[name]]
        if absent:
            reason = f"no entry in {', '.join(absent)}"
            dropped[reason] = dropped.get(reason, 0) + 1
            continue
        entries = {name: table[key] for name, table in tables.items()}
        target = _target(source, task, columns, entries, paths, section, problems)
        if source.split:
            splits.append(_split_name(source, columns["split"], entries, paths, problems))
        if target is not None:
            request = str(record.values[columns["request"][1]] or "")
            identity = row_id(request, target, source.language, None)
            rows.append(Row.model_construct(id=identity, request=request, target=target, language=source.language))
    raise_problems(problems)
    return Imported(rows, splits if source.split else None, dropped)


def _read_table(path: Path, id_column: str) -> dict[str, Record]:
    table: dict[str, Record] = {}
    problems = []
    for record in read_records(path):
        if id_column not in record.values:
            raise DataError(
                f"{path}:{record.line}: expected a column {id_column!r} to join by; got {', '.join(record.values)}"
            )
        key = str(record.values[id_column])
        if key in table:
            problems.append(f"{path}:{record.line}: id {key!r} is already used in line {table[key].line}")
        table.setdefault(key, record)
    raise_problems(problems)
    return table


def _columns(
    source: ImportSource, tables: Mapping[str, Mapping[str, Record]], paths: Mapping[str, Path], section: str
) -> dict[str, tuple[str, str]]:
    """(file, column) of every column the recipe names, by the key of its section that names it."""
    named = {"request": source.request}
    named |= {f"target.{key}": column for key, column in source.target.items()}
    if source.split:
        named["split"] = source.split
    columns = {}
    problems = []
    for key, name in named.items():
        file, _, column = name.partition(".")
        columns[key] = (file, column)
        if file not in tables or not column:
            problems.append(f"{section}.{key}: expected FILE.COLUMN with a file of {', '.join(tables)}; got {name!r}")
            continue
        present = list(next(iter(tables[file].values())).values)
        if column not in present:
            problems.append(
                f"{section}.{key}: expected a column of {paths[file]} ({', '.join(present)}); got {column!r}"
            )
    raise_problems(problems)
    return columns


def _target(
    source: ImportSource,
    task: ScoresTask,
    columns: Mapping[str, tuple[str, str]],
    entries: Mapping[str, Record],
    paths: Mapping[str, Path],
    section: str,
    problems: list[str],
) -> dict[str, float] | None:
    low, high = (source.rescale.low, source.rescale.high) if source.rescale else (task.low, task.high)
    target = {}
    for key in task.keys:
        file, column = columns[f"target.{key}"]
        raw = entries[file].values.get(column)
        where = f"{paths[file]}:{entries[file].line}: {column}"
        value = number_of(raw)
        if value is None:
            problems.append(f"{where}: expected a number; got {raw!r}")
        elif not low <= value <= high:
            scale = f"{section}.rescale" if source.rescale else f"the task's range; add {section}.rescale"
            problems.append(f"{where}: expected {low:g} to {high:g} ({scale}); got {value:g}")
        else:
            # Rounded to 9 digits first: 3.14 is stored a little below, and its half would otherwise round down.
            scaled = round(task.low + (value - low) / (high - low) * task.span, 9)
            target[key] = task.round(scaled)
    return target if len(target) == len(task.keys) else None


def _split_name(
    source: ImportSource,
    column: tuple[str, str],
    entries: Mapping[str, Record],
    paths: Mapping[str, Path],
    problems: list[str],
) -> SplitName:
    file, name = column
    found = str(entries[file].values.get(name))
    if found not in source.split_names:
        known = ", ".join(source.split_names)
        problems.append(
            f"{paths[file]}:{entries[file].line}: {name}: expected a split of data.source.split_names ({known}); "
            f"got {found!r}"
        )
        return "train"
    return source.split_names[found]
