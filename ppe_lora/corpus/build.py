"""From a recipe to a data set on disk: sampling, teacher or import, filters, split, files."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ppe_lora.artifacts import hash_file, hash_json, is_current, read_json, write_json, write_manifest, write_text
from ppe_lora.corpus.asks import make_asks
from ppe_lora.corpus.filters import Filtered, Rejection, drop_duplicate_ids, empty, filter_rows
from ppe_lora.corpus.importers import input_hashes, read_import
from ppe_lora.corpus.rows import SPLITS, Row, row_id, split_path, write_rows
from ppe_lora.corpus.split import BySplit, cap_rows, drop_shared, split_rows
from ppe_lora.corpus.stats import dataset_stats
from ppe_lora.corpus.teachers import Teacher, make_teacher
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import GenerateSource, ImportSource, Recipe

Progress = Callable[[int], None]
_FORMAT = 1
"""Raised when equal inputs would make other rows: sampling, filters or split changed."""
_BATCH_ROWS = 64


class BuildReport(NamedTuple):
    """What a build did: all counts are rows."""

    folder: Path
    dataset_version: str
    """Derived from the content of the three split files."""
    made: bool
    """False if the folder already held this data set."""
    asked: int
    """Requests asked from the teacher, or found in the imported files."""
    rows: dict[str, int]
    """Kept rows by split."""
    rejected: dict[str, int]
    """Rows in `rejected.jsonl` by rule."""
    dropped: dict[str, int]
    """Rows left out without fault, by reason: not in every imported file, over `data.split.max_rows`."""


class _Built(NamedTuple):
    by_split: BySplit
    rejected: list[Rejection]
    asked: int
    dropped: dict[str, int]


def build_dataset(recipe: Recipe, folder: Path, progress: Progress | None = None) -> BuildReport:
    """Make the recipe's data set in `folder`, unless it is already there.

    The files are made in a sibling folder and moved in one step, so a killed build leaves the old data or none.

    Args:
        recipe: Its task, data section and seed decide the data.
        folder: Where the files go; an older data set there is replaced.
        progress: Called with the number of requests phrased or read since the last call.

    Raises:
        DataError: The source cannot be used, the folder holds something else, or a split has no rows.
    """
    teacher = None
    if isinstance(recipe.data.source, GenerateSource):
        teacher = make_teacher(recipe.data.source.teacher, recipe.task, recipe.seed)
    inputs = _inputs(recipe, teacher)
    if is_current(folder, inputs):
        return _report(folder, read_json(folder / "manifest.json"), made=False)
    _check_replaceable(folder)
    advance = progress or (lambda rows: None)
    built = _generate(recipe, teacher, advance) if teacher else _import(recipe, advance)
    _check_splits(recipe, built)
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    _write(building, recipe, built, inputs)
    if folder.exists():
        shutil.rmtree(folder)
    building.rename(folder)
    return _report(folder, read_json(folder / "manifest.json"), made=True)


def _generate(recipe: Recipe, teacher: Teacher, advance: Progress) -> _Built:
    source = recipe.data.source
    assert isinstance(source, GenerateSource)
    asks = make_asks(recipe.task, source, recipe.seed)
    rows = []
    for start in range(0, len(asks), _BATCH_ROWS):
        batch = asks[start : start + _BATCH_ROWS]
        phrased = teacher.phrase([ask for ask, _ in batch])
        for (ask, sampler), (text, scenario) in zip(batch, phrased, strict=True):
            target, context = dict(ask.target), dict(ask.context) if ask.context else None
            # Not validated: an empty text must reach the filters to be rejected and kept with its reason.
            row = Row.model_construct(
                id=row_id(text, target, ask.language, context),
                request=text,
                target=target,
                language=ask.language,
                style=ask.style,
                scenario=scenario,
                sampler=sampler,
                teacher=teacher.name,
                context=context,
            )
            rows.append(row)
        advance(len(batch))
    filtered = filter_rows(rows, recipe.task, recipe.data.filters)
    return _capped(recipe, split_rows(filtered.kept, recipe.data.split, recipe.seed), filtered.rejected, len(rows), {})


def _import(recipe: Recipe, advance: Progress) -> _Built:
    """Import rows. The checks for generated text do not apply to them: people may write numbers."""
    source = recipe.data.source
    assert isinstance(source, ImportSource)
    imported = read_import(source, recipe.task)
    advance(len(imported.rows))
    if imported.splits is None:
        filtered = _whole(imported.rows)
        by_split = split_rows(filtered.kept, recipe.data.split, recipe.seed)
        return _capped(recipe, by_split, filtered.rejected, len(imported.rows), imported.dropped)
    official: BySplit = {name: [] for name in SPLITS}
    for row, split in zip(imported.rows, imported.splits, strict=True):
        official[split].append(row)
    unshared, rejected = drop_shared(official)
    by_split = {}
    for name, rows in unshared.items():
        filtered = _whole(rows)
        by_split[name] = filtered.kept
        rejected += filtered.rejected
    return _capped(recipe, by_split, rejected, len(imported.rows), imported.dropped)


def _whole(rows: list[Row]) -> Filtered:
    """Rows with a request, each id once."""
    without = [Rejection(row, *evidence) for row in rows if (evidence := empty(row))]
    unique = drop_duplicate_ids([row for row in rows if not empty(row)])
    return Filtered(unique.kept, without + unique.rejected)


def _capped(
    recipe: Recipe, by_split: BySplit, rejected: list[Rejection], asked: int, dropped: dict[str, int]
) -> _Built:
    capped = cap_rows(by_split, recipe.data.split.max_rows, recipe.seed)
    over = {
        f"over max_rows.{s}": len(by_split[s]) - len(capped[s]) for s in SPLITS if len(by_split[s]) > len(capped[s])
    }
    return _Built(capped, rejected, asked, dropped | over)


def _check_splits(recipe: Recipe, built: _Built) -> None:
    without = [name for name in SPLITS if not built.by_split[name]]
    if not without:
        return
    source = recipe.data.source
    found = f"{built.asked} requests, {len(built.rejected)} rejected{_by_rule(built.rejected)}"
    if isinstance(source, ImportSource) and source.split:
        remedy = f"check data.source.split_names, and which splits {source.split} has"
    else:
        settings = recipe.data.split
        remedy = f"change data.split.valid (now {settings.valid:g}) or data.split.test (now {settings.test:g})"
        if isinstance(source, GenerateSource):
            remedy = f"raise data.source.rows (now {source.rows}), or {remedy}"
    raise DataError(f"data {recipe.data.name}: expected rows in every split; got none for {', '.join(without)} from "
                    f"{found}; {remedy}")  # fmt: skip


def _by_rule(rejected: Iterable[Rejection]) -> str:
    counts = Counter(rejection.rule for rejection in rejected).most_common()
    return f" ({', '.join(f'{rule} {count}' for rule, count in counts)})" if counts else ""


def _inputs(recipe: Recipe, teacher: Teacher | None) -> dict[str, Any]:
    """Everything that decides the rows. Where imported files lie does not: their content does."""
    source = recipe.data.source
    deciding = {"keys", "low", "high", "decimals", "aliases"}
    return {
        "format": _FORMAT,
        "task": recipe.task.model_dump(mode="json", include=deciding),
        "data": recipe.data.model_dump(mode="json", exclude={"name": True, "source": {"source_dir"}}),
        "seed": recipe.seed,
        "teacher": {"name": teacher.name, "version": teacher.version} if teacher else None,
        "input_files": input_hashes(source) if isinstance(source, ImportSource) else {},
    }


def _check_replaceable(folder: Path) -> None:
    ours = {split_path(folder, split).name for split in SPLITS}
    ours |= {"rejected.jsonl", "stats.json", "manifest.json", "data_report.html"}
    if folder.exists():
        foreign = sorted(path.name for path in folder.iterdir() if path.name not in ours) if folder.is_dir() else ["it"]
        if foreign:
            raise DataError(
                f"{folder}: expected a data set to replace; got other files ({', '.join(foreign[:5])}); "
                "move them, or choose another data.name"
            )


def _write(folder: Path, recipe: Recipe, built: _Built, inputs: dict[str, Any]) -> None:
    for split in SPLITS:
        write_rows(split_path(folder, split), built.by_split[split])
    lines = (
        json.dumps(
            {"row": r.row.model_dump(exclude_none=True), "rule": r.rule, "evidence": r.evidence}, ensure_ascii=False
        )
        for r in built.rejected
    )
    write_text(folder / "rejected.jsonl", "".join(line + "\n" for line in lines))
    write_json(folder / "stats.json", dataset_stats(built.by_split, recipe.task))
    hashes = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    write_manifest(
        folder,
        inputs,
        dataset_version=hash_json([hashes[split_path(folder, split).name] for split in SPLITS]),
        asked=built.asked,
        rows={split: len(built.by_split[split]) for split in SPLITS},
        rejected=dict(Counter(rejection.rule for rejection in built.rejected)),
        dropped=built.dropped,
        files=hashes,
    )


def _report(folder: Path, manifest: dict[str, Any], made: bool) -> BuildReport:
    counts = (manifest[name] for name in ("asked", "rows", "rejected", "dropped"))
    return BuildReport(folder, manifest["dataset_version"], made, *counts)
