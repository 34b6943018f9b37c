"""The data row, the files rows live in, and how they are read back with `file:line` errors."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from ppe_lora.artifacts import Changed, changed_files, read_json, write_text
from ppe_lora.cells import Request, Text, parse_json
from ppe_lora.corpus.tables import raise_problems
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import SplitName, Style
from ppe_lora.section import Section
from ppe_lora.tasks.scores import Language, ScoresTask

SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")


class Row(Section):
    """One request and its target. `id` is the hash of what the student sees and must answer."""

    id: str
    request: Request = Field(min_length=1)
    target: dict[str, int | float]
    language: Language
    style: Style | None = None
    scenario: tuple[str, ...] = ()
    sampler: Literal["uniform", "cluster", "edge", "import"] = "import"
    teacher: str | None = None
    context: dict[Text, Text] | None = None


def row_id(request: str, target: dict[str, float], language: Language, context: dict[str, str] | None) -> str:
    """Content hash of a row: 16 hexadecimal digits of the SHA-256 of its canonical JSON."""
    content = json.dumps([request, target, language, context], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def split_path(folder: Path, split: SplitName) -> Path:
    """The file of one split of a data set."""
    return folder / f"ft_request_param_{split}.jsonl"


def dataset_version(folder: Path) -> str:
    """The content hash of a finished data set, whose rows are as they were built.

    Raises:
        DataError: The data set has not been built, or somebody has changed its rows since.
    """
    if not (folder / "manifest.json").is_file():
        raise DataError(f"{folder}: no finished data set; make it with `ppe-lora data build RECIPE`")
    manifest = read_json(folder / "manifest.json")
    if changed := changed_rows(folder, manifest):
        raise DataError(
            f"{folder}: expected the rows that were built; got others: {', '.join(map(str, changed))}; put them back, "
            "or move the folder and build the data set again (rows of your own come in through data.source, kind: "
            "import)"
        )
    return str(manifest["dataset_version"])


def changed_rows(folder: Path, manifest: Mapping[str, Any]) -> list[Changed]:
    """Split files that are no longer as a data set's manifest has them; see `artifacts.changed_files`."""
    names = {split_path(folder, split).name for split in SPLITS}
    noted = {name: value for name, value in manifest.get("files", {}).items() if name in names}
    return changed_files(folder, {**manifest, "files": noted})


def to_json(row: Row) -> str:
    """One line of a data file, without its line end. Unset fields are left out."""
    return json.dumps(row.model_dump(exclude_none=True), ensure_ascii=False)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSONL, replacing the file."""
    write_text(path, "".join(to_json(row) + "\n" for row in rows))


def read_rows(path: Path, task: ScoresTask) -> list[Row]:
    """Read and check a data file.

    Raises:
        DataError: The file is missing or empty, its rows are of another task, or rows break the contract. All problems
            are collected (the first 20 are shown), each starting with `file:line`.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such data file; make it with `ppe-lora data build RECIPE`")
    rows: list[Row] = []
    problems: list[str] = []
    of_other_keys: list[Row] = []
    first_line_of: dict[str, int] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not (line := line.strip()):
                continue
            try:
                row = _row(line)
            except ValidationError as error:
                problems += [f"{path}:{number}: {problem}" for problem in _undecodable(line) or problems_of(error)]
                continue
            except ValueError as error:
                problems.append(f"{path}:{number}: {error}")
                continue
            try:
                task.check_target(row.target)
            except ValueError as error:
                problems.append(f"{path}:{number}: target: {error}")
                if row.target.keys() != set(task.keys):
                    of_other_keys.append(row)
                continue
            if row.id in first_line_of:
                problems.append(f"{path}:{number}: id {row.id} is already used in line {first_line_of[row.id]}")
            first_line_of.setdefault(row.id, number)
            rows.append(row)
    if of_other_keys and len(of_other_keys) == len(problems) and not rows:
        wanted, found = ", ".join(task.keys), ", ".join(of_other_keys[0].target)
        raise DataError(
            f"{path.parent}: expected rows with the keys {wanted}; got {found}; give the new task a data set of its "
            "own: data.name=NAME"
        )
    raise_problems(problems)
    if not rows:
        raise DataError(f"{path}: expected at least one row; got an empty file")
    return rows


def targets_matrix(rows: Sequence[Row], task: ScoresTask) -> NDArray[np.float64]:
    """Targets as N rows by K keys, in the task's key order, in task units."""
    return np.array([[row.target[key] for key in task.keys] for row in rows], dtype=np.float64)


def _row(line: bytes) -> Row:
    row = Row.model_validate_json(line)
    # Of a key that is there twice pydantic takes the last. The strict reader is slow, so it looks at suspects only.
    keys = len(row.model_fields_set) + len(row.target) + len(row.context or ())
    if line.count(b'":') != keys or b" :" in line or b"\t:" in line or b"\r:" in line:
        parse_json(line)
    return row


def _undecodable(line: bytes) -> list[str]:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return [f"expected UTF-8 text; got byte {line[error.start]:#04x}"]
    return []


def problems_of(error: ValidationError) -> list[str]:
    """What pydantic found wrong with a row, one problem a field."""
    return [
        ": ".join(filter(None, [".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")]))
        for one in error.errors()
    ]
