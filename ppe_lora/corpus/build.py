"""From a recipe to a data set on disk: sampling, teacher or import, filters, split, files."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ppe_lora.artifacts import (
    hash_file,
    hash_json,
    is_made_from,
    new_folder,
    read_json,
    write_json,
    write_manifest,
    write_text,
)
from ppe_lora.cells import is_blank, shorten
from ppe_lora.corpus.asks import make_asks
from ppe_lora.corpus.filters import Filtered, Rejection, drop_duplicate_ids, filter_rows
from ppe_lora.corpus.importers import Imported, input_hashes, read_import
from ppe_lora.corpus.relabel import NoiseFloor, drop_far
from ppe_lora.corpus.rows import SPLITS, Row, changed_rows, dataset_version, row_id, split_path, write_rows
from ppe_lora.corpus.sampling import SamplerName, observed_hash
from ppe_lora.corpus.split import BySplit, cap_rows, drop_held_out, drop_shared, split_rows
from ppe_lora.corpus.stats import dataset_stats
from ppe_lora.corpus.teachers import Ask, LlmTeacher, Phrased, Reader, Teacher, make_teacher
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import GenerateSource, ImportSource, Recipe
from ppe_lora.recipe.teachers import NOT_CONTENT

_FORMAT = 3
"""Raised when equal inputs would make other rows: sampling, filters or split changed."""
_NOT_CONTENT: Any = {
    "name": True,
    "source": {"source_dir": True, "sampler": {"observed": {"path"}}, "teacher": NOT_CONTENT},
    "held_out": {"source_dir"},
    "filters": {"relabel": {"teacher": NOT_CONTENT}},
}
"""Keys of `data` that say where rows and answers come from, not what they are."""


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
    notes: list[str]
    """What a reader should know of imported files: ids that did not meet, scores that fill little of the range."""


class _Built(NamedTuple):
    by_split: BySplit
    rejected: list[Rejection]
    asked: int
    dropped: dict[str, int]
    floor: NoiseFloor | None = None
    spent: dict[str, Any] | None = None
    """What language models took for it, by what they did."""
    notes: Sequence[str] = ()


def raw_dir(folder: Path) -> Path:
    """Where the raw answers of a data set's teacher are kept. No build deletes them: they were paid for."""
    return folder.parent / "raw" / folder.name


def build_dataset(recipe: Recipe, folder: Path, *, skip_corrupt: bool = False) -> BuildReport:
    """Make the recipe's data set in `folder`, unless it is already there.

    The files are made in a sibling folder and moved in one step, so a killed build leaves the old data or none.
    A teacher that is a language model is asked only what no raw answer in `raw_dir(folder)` says.

    Args:
        recipe: Its task, data section and seed decide the data.
        folder: Where the files go; an older data set there is replaced.
        skip_corrupt: Ask again what a corrupt line of the raw answers may have said, instead of stopping there.

    Raises:
        DataError: The source cannot be used, the folder holds something else or rows that somebody has changed, or a
            split has no rows.
        PpeError: The teacher cannot be reached, or its budget is spent; what it said is kept.
    """
    teacher = None
    reader = make_reader(recipe, folder, skip_corrupt=skip_corrupt)
    if isinstance(recipe.data.source, GenerateSource):
        settings = recipe.data.source.teacher
        teacher = make_teacher(settings, recipe.task, recipe.seed, raw_dir(folder), skip_corrupt=skip_corrupt)
    inputs = _inputs(recipe, teacher) | ({"reader": reader.version} if reader else {})
    if is_made_from(folder, inputs) and all(split_path(folder, split).is_file() for split in SPLITS):
        dataset_version(folder)  # raises where somebody has changed the rows
        return _report(folder, read_json(folder / "manifest.json"), made=False)
    _check_replaceable(folder)
    # Read before a teacher is paid for rows that a mistake in this file would keep from being written.
    held_out = read_import(recipe.data.held_out, recipe.task, "data.held_out") if recipe.data.held_out else None
    built = _generate(recipe, teacher, reader, held_out) if teacher else _import(recipe, held_out)
    _check_splits(recipe, built)
    with new_folder(folder) as building:
        _write(building, recipe, built, inputs)
    return _report(folder, read_json(folder / "manifest.json"), made=True)


def make_reader(recipe: Recipe, folder: Path, *, skip_corrupt: bool = False) -> Reader | None:
    """Who reads the data set's texts back; None where the recipe wants no blind re-labelling. Arguments as above."""
    settings, relabel = recipe.data.reader, recipe.data.filters.relabel
    if settings is None or relabel is None:
        return None
    section = "data.filters.relabel.teacher" if relabel.teacher else "data.source.teacher"
    return Reader(settings, recipe.task, raw_dir(folder), section=section, skip_corrupt=skip_corrupt)


def _generate(recipe: Recipe, teacher: Teacher, reader: Reader | None, held_out: Imported | None) -> _Built:
    source = recipe.data.source
    assert isinstance(source, GenerateSource)
    asks = make_asks(recipe.task, source, recipe.seed)
    rows, unanswered = generated_rows(asks, teacher.phrase([ask for ask, _ in asks]), teacher.name)
    filtered = filter_rows(rows, recipe.task, recipe.data.filters)
    floor = None
    relabel = recipe.data.filters.relabel
    if reader and relabel and filtered.kept:  # last, near-duplicates included: a reading costs money, a filter does not
        near, floor = drop_far(filtered.kept, reader.read(filtered.kept), recipe.task, relabel.k, reader.name)
        filtered = Filtered(near.kept, filtered.rejected + near.rejected)
    filtered = Filtered(filtered.kept, unanswered + filtered.rejected)
    spent = {"writing": teacher.spent._asdict()} if isinstance(teacher, LlmTeacher) else {}
    spent |= {"reading back": reader.spent._asdict()} if reader else {}
    notes = held_out.notes if held_out else ()
    return _dealt(recipe, filtered, held_out, len(asks), {})._replace(floor=floor, spent=spent, notes=notes)


def generated_rows(
    asks: Sequence[tuple[Ask, SamplerName]], phrased: Sequence[Phrased], teacher: str
) -> tuple[list[Row], list[Rejection]]:
    """Rows before any filter, and those for which the teacher's answer is no request.

    Args:
        asks: What was asked, with the sampler that drew it.
        phrased: The teacher's answers, in the same order.
        teacher: Its name.
    """
    rows: list[Row] = []
    unanswered: list[Rejection] = []
    for (ask, sampler), (text, scenario, fault) in zip(asks, phrased, strict=True):
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
            teacher=teacher,
            context=context,
        )
        if fault is None:
            rows.append(row)
        else:
            unanswered.append(Rejection(row, "teacher answer", fault))
    return rows, unanswered


def _import(recipe: Recipe, held_out: Imported | None) -> _Built:
    """Import rows. The checks for generated text do not apply to them: people may write numbers."""
    source = recipe.data.source
    assert isinstance(source, ImportSource)
    imported = read_import(source, recipe.task, "data.source")
    notes = imported.notes + (held_out.notes if held_out else [])
    if imported.splits is None:
        dealt = _dealt(recipe, _whole(imported.rows), held_out, len(imported.rows), imported.dropped)
        return dealt._replace(notes=notes)
    official: BySplit = {name: [] for name in SPLITS}
    for row, split in zip(imported.rows, imported.splits, strict=True):
        official[split].append(row)
    unshared, rejected = drop_shared(official)
    by_split = {}
    for name, rows in unshared.items():
        filtered = _whole(rows)
        by_split[name] = filtered.kept
        rejected += filtered.rejected
    return _capped(recipe, by_split, rejected, len(imported.rows), imported.dropped)._replace(notes=notes)


def _dealt(
    recipe: Recipe, filtered: Filtered, held_out: Imported | None, asked: int, dropped: dict[str, int]
) -> _Built:
    """The filtered rows split; held-out rows, where the recipe names some, are the test split."""
    settings = recipe.data.split
    rows, rejected, test = filtered.kept, filtered.rejected, None
    if held_out:
        whole = _whole(held_out.rows)
        test = whole.kept
        rows, alike = drop_held_out(rows, test, settings.group)
        rejected = rejected + whole.rejected + alike
        asked += len(held_out.rows)
        dropped = dropped | {f"held out: {reason}": count for reason, count in held_out.dropped.items()}
    by_split, between = split_rows(rows, settings, recipe.seed)
    if test is not None:
        by_split["test"] = test
    return _capped(recipe, by_split, rejected + between, asked, dropped)


def _whole(rows: list[Row]) -> Filtered:
    """Rows with a request, each id once. A person's "!" or "None" is one."""
    without = [Rejection(row, "empty", repr(row.request)) for row in rows if is_blank(row.request)]
    unique = drop_duplicate_ids([row for row in rows if not is_blank(row.request)])
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
    if isinstance(source, ImportSource) and not any(built.by_split.values()):
        remedy = f"check {source.request}, the column of the requests"
    elif isinstance(source, ImportSource) and source.split:
        remedy = f"check data.source.split_names, and which splits {source.split} has"
    else:
        settings = recipe.data.split
        remedy = f"change data.split.valid (now {settings.valid:g}) or data.split.test (now {settings.test:g})"
        if recipe.data.held_out:
            remedy = f"change data.split.valid (now {settings.valid:g}), and check that data.held_out has requests"
        if isinstance(source, GenerateSource):
            remedy = f"raise data.source.rows (now {source.rows}), or {remedy}"
            answers = [one for one in built.rejected if one.rule == "teacher answer"]
            if len(answers) * 2 > built.asked:
                remedy = f"most of the teacher's answers are of no use, such as: {shorten(answers[0].evidence)}"
    raise DataError(f"data {recipe.data.name}: expected rows in every split; got none for {', '.join(without)} from "
                    f"{found}; {remedy}")  # fmt: skip


def _by_rule(rejected: Iterable[Rejection]) -> str:
    counts = Counter(rejection.rule for rejection in rejected).most_common()
    return f" ({', '.join(f'{rule} {count}' for rule, count in counts)})" if counts else ""


def _inputs(recipe: Recipe, teacher: Teacher | None) -> dict[str, Any]:
    """Everything that decides the rows. Where imported files lie does not: their content does."""
    source, held_out = recipe.data.source, recipe.data.held_out
    deciding = {"keys", "low", "high", "decimals", "aliases"}
    return {
        "format": _FORMAT,
        "task": recipe.task.model_dump(mode="json", include=deciding),
        "data": data_content(recipe),
        "seed": recipe.seed,
        "teacher": {"name": teacher.name, "version": teacher.version} if teacher else None,
        "input_files": input_hashes(source, "data.source") if isinstance(source, ImportSource) else _observed(source),
        "held_out_files": input_hashes(held_out, "data.held_out") if held_out else {},
    }


def data_content(recipe: Recipe) -> dict[str, Any]:
    """The part of the recipe's data section that decides the rows, as a data set's manifest has it (`inputs.data`)."""
    return recipe.data.model_dump(mode="json", exclude=_NOT_CONTENT)


def _observed(source: GenerateSource) -> dict[str, str]:
    found = observed_hash(source.sampler)
    return {"observed": found} if found else {}


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
    manifest = folder / "manifest.json"
    found = changed_rows(folder, read_json(manifest)) if manifest.is_file() else []
    changed = [one for one in found if one.what == "differs"]  # a missing one is lost already
    if changed:
        raise DataError(
            f"{folder}: expected rows as they were built, to replace them; got others: {', '.join(map(str, changed))}; "
            "move the folder, or choose another data.name"
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
        notes=list(built.notes),
        files=hashes,
        spent=built.spent or {},
        **({"relabel": built.floor._asdict()} if built.floor else {}),
    )


def _report(folder: Path, manifest: dict[str, Any], made: bool) -> BuildReport:
    values = (manifest[name] for name in ("asked", "rows", "rejected", "dropped", "notes"))
    return BuildReport(folder, manifest["dataset_version"], made, *values)
