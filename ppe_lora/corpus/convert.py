"""Data files from one format to another, with a report of every line."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ppe_lora.artifacts import new_folder, write_text
from ppe_lora.cells import shown
from ppe_lora.console import console
from ppe_lora.corpus.formats import Format, content_bytes, hosted_problems, own_instruction, record_of, row_of
from ppe_lora.corpus.precision import Scale, narrow
from ppe_lora.corpus.rows import SPLITS, Row, split_path
from ppe_lora.corpus.tables import is_csv, is_jsonl, raise_problems, read_records
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import SplitName
from ppe_lora.tasks.scores import ScoresTask

_SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test",
}  # fmt: skip
_FILE = re.compile(rf"(?:.*[_.-])?({'|'.join(_SPLIT_NAMES)})")


class Entry(NamedTuple):
    """One record of a source and where it is."""

    split: SplitName
    where: str
    """`file:line`, or the split and number of an entry of a Hugging Face data set."""
    values: Mapping[str, Any]


class Converted(NamedTuple):
    """What a conversion did."""

    rows: dict[SplitName, int]
    """Rows written by split."""
    skipped: int
    """Records left out, each with its problems in `report.jsonl`."""


def convert(source: Path, target: Path, to: Format, task: ScoresTask, skip_invalid: bool = False) -> Converted:
    """Read a data set in any format and write it in another, with `report.jsonl`: a line for every record read.

    Args:
        source: A JSONL file, a folder of JSONL files named after their splits, or a Hugging Face data set on disk. The
            format of a record is told by its keys.
        target: A new folder. JSONL formats make a file per split, `hf` a data set on disk.
        to: The format to write.
        task: Its answers are the only valid ones.
        skip_invalid: Leave out invalid records instead of raising.

    Raises:
        DataError: The source cannot be read, the target exists, no record is valid, or some are not. Problems are
            collected; each starts with its place.
    """
    if target.exists():
        raise DataError(f"{target}: expected a new folder; it exists already; remove it or choose another")
    by_split: dict[SplitName, list[dict[str, Any]]] = {}
    report: list[dict[str, Any]] = []
    problems: list[str] = []
    first_at: dict[str, str] = {}
    instructions: dict[str, str] = {}
    rows: dict[str, Row] = {}
    for entry in _entries(source):
        found, row, record = _converted(entry.values, task, to)
        if row and (earlier := first_at.setdefault(row.id, entry.where)) != entry.where:
            found = [f"id {row.id} is already used in {earlier}"]
        if row and (instruction := own_instruction(entry.values, task)):
            instructions.setdefault(instruction, entry.where)
            found = found + _another(instruction, instructions)
        line: dict[str, Any] = {"where": entry.where, "split": entry.split, "id": row.id if row else None}
        if to == "finetuning_api" and row:
            line["bytes"] = content_bytes(record)
        report.append({**line, "problems": found})
        problems += [f"{entry.where}: {problem}" for problem in found]
        if row and not found:
            by_split.setdefault(entry.split, []).append(record)
            rows[entry.where] = row
    if not skip_invalid:
        raise_problems(problems)
    if not by_split:
        raise DataError(f"{source}: expected at least one valid record; got none of {len(report)}:\n{problems[0]}")
    _write(target, by_split, report, to, task)
    for note in _notes(rows, list(instructions), task):
        console.print(note)
    counts = {name: len(by_split[name]) for name in SPLITS if name in by_split}
    return Converted(counts, len(report) - len(rows))


def _another(instruction: str, instructions: Mapping[str, str]) -> list[str]:
    """The problem of an instruction that is not the first one met; dropping both would make rows that contradict."""
    first, where = next(iter(instructions.items()))
    if instruction == first:
        return []
    return [
        f"instruction: expected one instruction in all records, since a row has no place for it; got "
        f"{shown(instruction)} and, in {where}, {shown(first)}; put it into `input`, or convert the records of each "
        "instruction by themselves"
    ]


def _notes(rows: Mapping[str, Row], instructions: Sequence[str], task: ScoresTask) -> list[str]:
    """What is to be known of converted rows, which are given by their places."""
    notes = []
    if instructions:
        notes.append(f"the records' instruction {shown(instructions[0])} is left out: rows have the recipe's")
    first: dict[tuple[Any, ...], str] = {}
    against: list[tuple[str, str]] = []
    for where, row in rows.items():
        earlier = first.setdefault((row.request, row.language, tuple(sorted((row.context or {}).items()))), where)
        if rows[earlier].target != row.target:
            against.append((where, earlier))
    if against:
        (where, earlier), count = against[0], len(against)
        notes.append(
            f"{count} of {len(rows)} rows contradict an earlier row: the same request with another target; for example "
            f"{where} and {earlier}"
        )
    values = {key: [float(row.target[key]) for row in rows.values()] for key in task.keys}
    return notes + [f"target.{note}" for note in narrow(values, Scale(task.low, task.high))]


def _converted(values: Mapping[str, Any], task: ScoresTask, to: Format) -> tuple[list[str], Row | None, dict[str, Any]]:
    """The problems of a record, and its row and new form where it has one."""
    try:
        row = row_of(values, task)
    except ValueError as error:
        return [str(error)], None, {}
    record = record_of(row, task, to)
    return hosted_problems(record) if to == "finetuning_api" else [], row, record


def _entries(source: Path) -> Iterator[Entry]:
    if source.is_file():
        if is_csv(source):
            raise DataError(
                f"{source}: expected JSONL or a Hugging Face data set; got CSV; `ppe-lora data build` reads it by a "
                "recipe with data.source.kind: import"
            )
        split = _SPLIT_NAMES[found[1]] if (found := _FILE.fullmatch(source.stem.lower())) else "train"
        yield from _jsonl(source, split)
        return
    if not source.is_dir():
        raise DataError(f"{source}: expected a data file or folder; there is none")
    if any((source / name).is_file() for name in ("dataset_dict.json", "state.json")):  # made by `save_to_disk`
        from ppe_lora.corpus.hf import read_hf  # imports `datasets`

        for name, number, values in read_hf(source):
            if name not in _SPLIT_NAMES:
                raise DataError(f"{source}: expected splits named {', '.join(_SPLIT_NAMES)}; got {name}; rename it")
            yield Entry(_SPLIT_NAMES[name], f"{source}: {name} {number}", values)
        return
    lines = [path for path in sorted(source.iterdir()) if is_jsonl(path)]
    files = [(path, found[1]) for path in lines if (found := _FILE.fullmatch(path.stem.lower()))]
    if not files:
        raise DataError(
            f"{source}: expected files such as train.jsonl, or a Hugging Face data set; got neither; "
            "name one file instead of the folder, or rename the files after their splits"
        )
    for path, name in files:
        yield from _jsonl(path, _SPLIT_NAMES[name])


def _jsonl(path: Path, split: SplitName) -> Iterator[Entry]:
    for record in read_records(path):
        yield Entry(split, f"{path}:{record.line}", record.values)


def _write(
    target: Path,
    by_split: Mapping[SplitName, list[dict[str, Any]]],
    report: list[dict[str, Any]],
    to: Format,
    task: ScoresTask,
) -> None:
    with new_folder(target) as building:
        if to == "hf":
            from ppe_lora.corpus.hf import write_hf  # imports `datasets`

            named = {"validation" if name == "valid" else name: records for name, records in by_split.items()}
            write_hf(named, building, task)
        else:
            for name, records in by_split.items():
                path = split_path(building, name) if to == "rows" else building / f"{name}.jsonl"
                _write_lines(path, records)
        _write_lines(building / "report.jsonl", report)


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
