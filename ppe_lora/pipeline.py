"""The whole product, in order. Each stage reads what the one before wrote, and is skipped when it is up to date.

    data      recipe, source or teacher  ->  data/<data.name>/              train, valid and test rows
    train     data, base model           ->  checkpoints/<name>/            every epoch decoded; best/ selected
    evaluate  best/, test rows           ->  checkpoints/<name>/test/       decoded once, at the end
    export    best/, base model          ->  checkpoints/<name>/merged/     plain weights, reloaded and compared
    summary   all of the above           ->  checkpoints/<name>/summary.md

A stage's folder has a `manifest.json`, written last: without it the output is unfinished and made again (training is
resumed). torch is imported inside the stages that need it.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ppe_lora.console import console, progress
from ppe_lora.recipe import Recipe

if TYPE_CHECKING:
    from ppe_lora.corpus.rows import Row


def data_dir(recipe: Recipe) -> Path:
    """Where the recipe's rows are."""
    return Path("data") / recipe.data.name


def run_dir(recipe: Recipe) -> Path:
    """Where the recipe's run is."""
    return Path("checkpoints") / recipe.name


def build_data(recipe: Recipe) -> None:
    """Make the data set, or find it up to date. Under a launcher only the first process works; training waits for it.

    Raises:
        DataError: The source cannot be read, or too few rows survive the filters.
    """
    from ppe_lora.corpus.build import build_dataset

    if not _is_first_process():
        return
    folder = data_dir(recipe)
    with progress("making data", getattr(recipe.data.source, "rows", 0)) as advance:
        report = build_dataset(recipe, folder, advance)
    kept = ", ".join(f"{count} {split}" for split, count in report.rows.items())
    console.print(f"{folder}: {kept} rows, version {report.dataset_version}" + ("" if report.made else " (unchanged)"))
    for word, counts in (("rejected", report.rejected), ("left out", report.dropped)):
        if any(counts.values()):
            shown = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
            console.print(f"  {word} of {report.asked}: {shown}")
    if report.made:
        console.print("  to look at it: `ppe-lora data stats RECIPE` writes data_report.html")


def describe_data(recipe: Recipe) -> None:
    """Write `stats.json` and the page `data_report.html` into the data set's folder, and print the page's verdict.

    Raises:
        DataError: There is no finished data set, or a file breaks the row contract.
    """
    from ppe_lora.artifacts import write_json
    from ppe_lora.corpus.description import describe, read_dataset
    from ppe_lora.corpus.stats import dataset_stats
    from ppe_lora.report.data_page import FILE_NAME, write_data_page

    folder = data_dir(recipe)
    with progress("describing data", 5) as advance:
        data = read_dataset(folder, recipe.task)
        stats = dataset_stats(data.by_split, recipe.task)
        write_json(folder / "stats.json", stats)
        advance(note="counting tokens")
        tokens, missing = _token_lengths(recipe, data.kept)
        described = describe(
            data,
            recipe.task,
            group=recipe.data.split.group,
            tokens=tokens,
            max_tokens=recipe.student.max_tokens,
            step=lambda doing: advance(note=doing),
        )
        verdict = write_data_page(folder, recipe, data, stats, described, missing)
    console.print(verdict)
    if missing:
        console.print(f"  no lengths in tokens: {missing}", markup=False)
    console.print(str(folder / FILE_NAME))


def _token_lengths(recipe: Recipe, rows: list["Row"]) -> tuple[dict[str, int], str | None]:
    """Whole rows in the student's tokens by row id, or why they cannot be counted: data may precede its student."""
    from ppe_lora.errors import ModelError
    from ppe_lora.student.base import resolve_tokenizer
    from ppe_lora.student.encode import token_lengths
    from ppe_lora.student.tokenizer import load_tokenizer

    try:
        return token_lengths(rows, recipe.task, load_tokenizer(resolve_tokenizer(recipe.student))), None
    except ModelError as error:
        return {}, str(error)


def train(recipe: Recipe, *, resume: bool = False, fresh: bool = False) -> None:
    """Train the student and select its best epoch (see `ppe_lora.student.training.train`)."""
    from ppe_lora.student import training

    training.train(recipe, data_dir(recipe), run_dir(recipe), resume=resume, fresh=fresh)


def evaluate(recipe: Recipe) -> None:
    """Decode the test rows with the selected adapter, once."""
    from ppe_lora.student.test_rows import evaluate_test_rows

    evaluate_test_rows(recipe, data_dir(recipe), run_dir(recipe))


def export(recipe: Recipe) -> None:
    """Merge the selected adapter, reload the result without our code, and compare the answers."""
    from ppe_lora.export.stage import export_run

    export_run(recipe, data_dir(recipe), run_dir(recipe))


def summarize(recipe: Recipe) -> None:
    """Write `summary.md` and print its verdict."""
    from ppe_lora.report.summary import write_summary

    if _is_first_process():
        console.print(write_summary(recipe, data_dir(recipe), run_dir(recipe)))


def run(recipe: Recipe, *, fresh: bool = False) -> None:
    """All stages. What is complete and unchanged is skipped; an unfinished training is resumed."""
    build_data(recipe)
    train(recipe, resume=True, fresh=fresh)
    evaluate(recipe)
    export(recipe)
    summarize(recipe)


def show_row(recipe: Recipe, split: str, number: int) -> None:
    """Print one row's tokens as the student sees them; the supervised ones are marked.

    Raises:
        DataError: There is no such split or row.
    """
    from typing import get_args

    from rich.table import Table

    from ppe_lora.corpus.rows import read_rows, split_path
    from ppe_lora.errors import DataError
    from ppe_lora.recipe.schema import SplitName
    from ppe_lora.student.base import resolve_base
    from ppe_lora.student.encode import show_row as tokens_of
    from ppe_lora.student.tokenizer import load_tokenizer

    found: SplitName | None = next((name for name in get_args(SplitName) if name == split), None)
    if found is None:
        raise DataError(f"--split: expected one of {', '.join(get_args(SplitName))}; got {split}")
    rows = read_rows(split_path(data_dir(recipe), found), recipe.task)
    if not 1 <= number <= len(rows):
        raise DataError(f"--row: expected 1 to {len(rows)}; got {number}")
    row = rows[number - 1]
    table = Table("id", "token", "supervised", title=f"{split} row {number} ({row.id})")
    for piece, token, supervised in tokens_of(row, recipe.task, load_tokenizer(resolve_base(recipe.student))):
        table.add_row(str(token), repr(piece)[1:-1], "[green]yes[/green]" if supervised else "")
    console.print(table)


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def doctor(recipes: Path) -> None:
    """Print what this machine can do, and which recipes of a folder fit it."""
    from rich.table import Table

    from ppe_lora.recipe import load_recipe
    from ppe_lora.student.machine import describe_machine, fits

    machine = Table("what", "found", "remark")
    for fact in describe_machine():
        machine.add_row(*map(str, fact))
    console.print(machine)
    shipped = Table("recipe", "fits", "why")
    for path in sorted(recipes.rglob("*.yaml")):
        fit, why = fits(load_recipe(path))
        shipped.add_row(str(path), "[green]yes[/green]" if fit else "[red]no[/red]", why)
    console.print(shipped)
