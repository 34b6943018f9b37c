"""One look at everything a training will need, before weights are loaded: what is known now is not said after hours.

All rows of all splits are read and encoded. What is wrong is collected and said at once, rows by `file:line`; what can
be mended while training runs is a warning.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ppe_lora.corpus.rows import SPLITS, Row, read_rows, split_path, targets_matrix
from ppe_lora.errors import DataError, ModelError, PpeError
from ppe_lora.evaluation.baselines import train_mean_mse_norm
from ppe_lora.evaluation.calibration import LEAST_ROWS
from ppe_lora.evaluation.test_set import check_test_rows
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.schema import SplitName
from ppe_lora.student.base import resolve_base, resolve_tokenizer, weight_files
from ppe_lora.student.encode import MOST_SHOWN, EncodedRows
from ppe_lora.student.evaluate import EncodedSplit, keep_encoded
from ppe_lora.student.head import HEAD_ROWS
from ppe_lora.student.machine import GB
from ppe_lora.student.stored_rows import encode_once
from ppe_lora.student.tokenizer import StudentTokenizer, load_tokenizer
from ppe_lora.student.trie import ScoreTrie, build_trie

LEAST_TRAINING_ROWS = 2
"""Of one row there is no spread, and no baseline can be fitted."""

LEAST_TEST_ROWS = 2
"""Of one row there is no interval."""


class Preflight(NamedTuple):
    """What was read on the way, and what to know before a start."""

    tokenizer: StudentTokenizer
    trie: ScoreTrie
    rows: Mapping[SplitName, list[Row]]
    """Of every split, those left out among them."""
    splits: Mapping[SplitName, EncodedSplit]
    warnings: list[str]


def look_ahead(recipe: Recipe, data_dir: Path, run_dir: Path, *, fresh: bool) -> Preflight:
    """Check what a run of a recipe will need of its rows, its tokenizer and its disk.

    Args:
        recipe: The experiment.
        data_dir: Its data set.
        run_dir: Its run folder, which need not be there.
        fresh: Whether an earlier run of that name will be deleted.

    Raises:
        PpeError: Something is wrong; all of it is said, one problem a line.
    """
    problems: list[PpeError] = []
    rows: dict[SplitName, list[Row]] = {}
    for name in SPLITS:
        try:
            rows[name] = read_rows(split_path(data_dir, name), recipe.task)
        except DataError as error:
            problems.append(error)
    if not fresh and split_path(data_dir, "test").is_file():
        try:
            check_test_rows(run_dir, split_path(data_dir, "test"))
        except PpeError as error:
            problems.append(error)
    try:
        tokenizer = load_tokenizer(resolve_tokenizer(recipe.student))
        trie = build_trie(recipe.task, tokenizer, recipe.train.objective.slots)
    except ModelError as error:
        _raise([*problems, error])
        raise
    splits: dict[SplitName, EncodedSplit] = {}
    for name, some in rows.items():
        found = encode_once(some, recipe.task, tokenizer, recipe.student.max_tokens)
        splits[name] = keep_encoded(some, found, recipe.task)
        problems += _row_problems(recipe, split_path(data_dir, name), name, found)
    if "train" in splits:
        problems += _training_problems(recipe, split_path(data_dir, "train"), splits["train"], trie)
    if "test" in splits:
        problems += _test_problems(split_path(data_dir, "test"), len(splits["test"].rows))
    _raise(problems)
    return Preflight(tokenizer, trie, rows, splits, [*_warnings(recipe, rows, splits), *_disk(recipe, run_dir)])


def _raise(problems: Sequence[PpeError]) -> None:
    """Raise the only problem as it is, and several as one, a line each."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise DataError("\n".join(map(str, problems)))


def _row_problems(recipe: Recipe, path: Path, name: SplitName, found: EncodedRows) -> Iterator[PpeError]:
    """Rows that cannot be encoded, and a split of which nothing is left."""
    if found.unusable and recipe.student.on_bad_row == "stop":
        line_of = _lines(path)
        shown = [f"{path}:{line_of[row.id]}: row {row.id}: {row.reason}" for row in found.unusable[:MOST_SHOWN]]
        more = len(found.unusable) - len(shown)
        yield DataError(
            "\n".join([*shown, *([f"... and {more} more in {path}"] if more else [])])
            + f"\n{path}: {len(found.unusable)} rows cannot be encoded; correct them and build the data set again, or "
            "leave them out with student.on_bad_row=skip"
        )
    elif not found.encoded:
        lengths = [length for _, length in found.too_long]
        shortest = f"; the shortest has {min(lengths)} tokens: raise student.max_tokens" if lengths else ""
        yield DataError(
            f"{name}: every row is longer than student.max_tokens = {recipe.student.max_tokens}{shortest}"
            if not found.unusable
            else f"{name}: no row is left: {len(found.unusable)} cannot be encoded and {len(lengths)} are longer than "
            f"student.max_tokens = {recipe.student.max_tokens}{shortest}"
        )


def _lines(path: Path) -> dict[str, int]:
    """The line of every row of a data file that has been read without a fault."""
    with path.open(encoding="utf-8") as lines:
        return {json.loads(line)["id"]: number for number, line in enumerate(lines, 1) if line.strip()}


def _training_problems(recipe: Recipe, path: Path, train: EncodedSplit, trie: ScoreTrie) -> Iterator[PpeError]:
    count = len(train.rows)
    if 0 < count < LEAST_TRAINING_ROWS:
        yield DataError(f"{path}: expected at least {LEAST_TRAINING_ROWS} rows to train on; got {count}")
    if recipe.train.objective.head and count < HEAD_ROWS:
        yield DataError(
            f"train.objective.head: expected at least {HEAD_ROWS} training rows to fit heads on; got {count}; set it "
            "to 0, or make more rows"
        )
    try:
        train.leaves(trie)
    except ModelError as error:
        yield error


def _test_problems(path: Path, count: int) -> Iterator[PpeError]:
    """Test rows of which the report could say nothing."""
    if 0 < count < LEAST_TEST_ROWS:
        yield DataError(
            f"{path}: expected at least {LEAST_TEST_ROWS} rows to judge a run by; got {count}; make more rows, or "
            "raise data.split.test"
        )


def _warnings(
    recipe: Recipe, rows: Mapping[SplitName, Sequence[Row]], splits: Mapping[SplitName, EncodedSplit]
) -> Iterator[str]:
    limit = recipe.student.max_tokens
    for name, split in splits.items():
        if split.too_long:
            yield (
                f"{name}: {split.too_long} of {len(rows[name])} rows are longer than student.max_tokens = {limit} and "
                "are left out"
            )
        if split.unusable:
            yield f"{name}: {split.unusable} of {len(rows[name])} rows cannot be encoded and are left out"
    train, valid = splits["train"].rows, splits["valid"].rows
    for key in recipe.task.keys:
        values = {row.target[key] for row in train}
        if len(values) == 1:
            yield f"train: every row has {values.pop():g} for {key}: nothing can be learned of it; leave that key out"
    train_NK = targets_matrix(rows["train"], recipe.task)
    for name in ("valid", "test"):
        own = splits[name].rows
        if own and not train_mean_mse_norm(train_NK, targets_matrix(own, recipe.task), recipe.task):
            yield f"{name}: all {len(own)} rows have the train mean: no model can do better than it; take other rows"
    if len(valid) < LEAST_ROWS and recipe.evaluate.read_out == "calibrated":
        yield (
            f"valid: a correction is fitted on at least {LEAST_ROWS} rows; got {len(valid)}, so that evaluate.read_out "
            "calibrated will be the posterior mean as it is; make more rows, or raise data.split.valid"
        )


def _disk(recipe: Recipe, run_dir: Path) -> Iterator[str]:
    """A warning where the merged weights will not fit on the disk."""
    folder = resolve_base(recipe.student)
    size = sum(file.stat().st_size for file in weight_files(folder))
    free = shutil.disk_usage(next(parent for parent in run_dir.absolute().parents if parent.exists())).free
    if free < size:
        yield (
            f"{run_dir}: merged weights take about {size / GB:.1f} GB, and {free / GB:.1f} GB are free on its disk; "
            "free some before the export"
        )
