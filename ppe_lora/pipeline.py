"""The whole product, in order. Each stage reads what the one before wrote, and is skipped when it is up to date.

    data      recipe, source or teacher  ->  data/<data.name>/              train, valid and test rows
    train     data, base model           ->  checkpoints/<name>/            every epoch decoded; best/ selected
    evaluate  best/, test rows           ->  checkpoints/<name>/test/       decoded once, at the end
    export    best/, base model          ->  checkpoints/<name>/merged/     plain weights, reloaded and compared;
                                             .../adapter/, .../quantized/   the adapter alone; smaller weights if wanted
                                             .../vllm/, gguf/, onnx/        what serving engines want, if named
    report    all of the above           ->  checkpoints/<name>/            report.html and summary.md

`serve` answers requests over HTTP with what a run has made.

Over several runs: `sweep` runs a folder of recipes and writes their leaderboard, `compare` tells two runs apart.

A stage's folder has a `manifest.json`, written last: without it the output is unfinished and made again (training is
resumed). W&B and Weave are fed from the run folder, by processes of their own. torch is imported inside the stages
that need it.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ppe_lora.console import console, progress
from ppe_lora.recipe import Recipe

if TYPE_CHECKING:
    from ppe_lora.corpus.rows import Row
    from ppe_lora.corpus.teachers.llm.fetch import Plan
    from ppe_lora.serving.settings import Settings
    from ppe_lora.tracking.follower import Followers


def data_dir(recipe: Recipe) -> Path:
    """Where the recipe's rows are."""
    return Path("data") / recipe.data.name


def run_dir(recipe: Recipe) -> Path:
    """Where the recipe's run is."""
    return Path("checkpoints") / recipe.name


def build_data(recipe: Recipe, *, skip_corrupt: bool = False) -> None:
    """Make the data set, or find it up to date. Under a launcher only the first process works; training waits for it.

    Raises:
        DataError: The source cannot be read, or too few rows survive the filters.
        PpeError: The teacher cannot be reached, or its budget is spent. What it said is kept.
    """
    from ppe_lora.corpus.build import build_dataset

    if not _is_first_process():
        return
    folder = data_dir(recipe)
    report = build_dataset(recipe, folder, skip_corrupt=skip_corrupt)
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


def ask_teacher(recipe: Recipe, shard: str, *, skip_corrupt: bool = False) -> None:
    """Ask one shard's part of the questions (`i/n`) and keep the raw answers. Makes no data set.

    Raises:
        DataError: There is no such shard, or the teacher is not a language model.
        PpeError: As for `build_data`.
    """
    from ppe_lora.corpus.build import raw_dir
    from ppe_lora.corpus.planning import ask_shard, parse_shard

    folder = data_dir(recipe)
    asked = ask_shard(recipe, folder, parse_shard(shard), skip_corrupt=skip_corrupt)
    left = f"; {asked.elsewhere:,} are other shards'" if asked.elsewhere else "; build without --shard for the data set"
    console.print(f"{raw_dir(folder)}: {asked.replies:,} questions have a raw answer{left}")


def plan_data(recipe: Recipe, shard: str | None = None, *, skip_corrupt: bool = False) -> None:
    """Print what asking the teacher would take. Asks nothing.

    Raises:
        DataError: There is no such shard, or a raw file is corrupt.
    """
    from ppe_lora.corpus.planning import parse_shard, plan_asking, plan_reading

    rows = getattr(recipe.data.source, "rows", None)
    folder = data_dir(recipe)
    writing = plan_asking(recipe, folder, parse_shard(shard) if shard else None, skip_corrupt=skip_corrupt)
    reading = None if shard else plan_reading(recipe, folder, skip_corrupt=skip_corrupt)
    if writing:
        console.print(f"{folder}: {rows:,} rows; {_planned(writing)}")
    if reading:
        console.print(f"{folder}: texts to read back; {_planned(reading)}")
    if writing is None and reading is None:
        console.print(f"{folder}: {f'{rows:,} rows' if rows else 'an import'}; no language model is asked")


def _planned(plan: "Plan") -> str:
    model, estimate, seconds, pace = plan
    expected, worst = estimate.expected, estimate.worst
    return (
        f"{expected.requests:,} requests still to ask {model}, {estimate.answered:,} answered already\n"
        f"  tokens  {expected.prompt_tokens:,} of prompts and {expected.completion_tokens:,} of answers expected; "
        f"at most {worst.tokens:,}\n"
        f"  money   {estimate.expected_cost:,.2f} expected; at most {estimate.worst_cost:,.2f} at the recipe's prices\n"
        f"  time    {pace if seconds is None else f'{_duration(seconds)} at {pace}'}"
    )


def write_questions(recipe: Recipe, out: Path) -> None:
    """Write what is still to be asked as batch files for another engine (see `planning.write_questions`)."""
    from ppe_lora.corpus.planning import write_questions as write

    files = write(recipe, data_dir(recipe), out)
    if not files:
        console.print(f"{data_dir(recipe)}: every question has a raw answer; build the data set")
    for path, model, count in files:
        console.print(f"{path}: {count:,} questions to {model}")


def read_answers(recipe: Recipe, results: list[Path]) -> None:
    """Keep another engine's answers as raw replies (see `planning.read_answers`)."""
    from ppe_lora.corpus.build import raw_dir
    from ppe_lora.corpus.planning import read_answers as read

    answers = read(recipe, data_dir(recipe), results)
    console.print(f"{raw_dir(data_dir(recipe))}: {len(answers.replies):,} new answers")
    if answers.unanswered:
        reason = next(iter(answers.unanswered.values()))
        console.print(f"  {len(answers.unanswered):,} questions have none (the first: {reason})", markup=False)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def train(recipe: Recipe, *, resume: bool = False, fresh: bool = False) -> None:
    """Train the student and select its best epoch (see `ppe_lora.student.training.train`)."""
    with _followers(recipe) as followers:
        _train(recipe, followers, resume=resume, fresh=fresh)


def _train(recipe: Recipe, followers: "Followers", *, resume: bool, fresh: bool) -> None:
    from ppe_lora.student import training

    # Followers start when the run folder is there, and not before --fresh has deleted an earlier one.
    training.train(recipe, data_dir(recipe), run_dir(recipe), resume=resume, fresh=fresh, on_start=followers.start)


def evaluate(recipe: Recipe) -> None:
    """Decode the test rows with the selected adapter, once."""
    with _followers(recipe) as followers:
        _evaluate(recipe, followers)


def _evaluate(recipe: Recipe, followers: "Followers") -> None:
    from ppe_lora.student.test_rows import evaluate_test_rows

    evaluate_test_rows(recipe, data_dir(recipe), run_dir(recipe))
    followers.start()


def baselines(recipe: Recipe) -> None:
    """Print what predictors without a language model get on the test rows.

    Raises:
        DataError: The data set has not been built.
    """
    from rich.table import Table

    from ppe_lora.corpus.rows import read_rows, split_path, targets_matrix
    from ppe_lora.evaluation.baselines import (
        constant_mse_norm,
        embedding_answers,
        ridge_mse_norm,
        train_mean_mse_norm,
    )
    from ppe_lora.evaluation.metrics import Scale, mse_norm

    task = recipe.task
    train_rows, test_rows = (read_rows(split_path(data_dir(recipe), split), task) for split in ("train", "test"))
    train_NK, test_NK = targets_matrix(train_rows, task), targets_matrix(test_rows, task)
    texts = [[row.request for row in rows] for rows in (train_rows, test_rows)]
    trivial = train_mean_mse_norm(train_NK, test_NK, task)
    table = Table(
        "baseline", "mse_norm", "against the train mean", title=f"{recipe.data.name}: {len(test_rows)} test rows"
    )
    for name, value in (
        ("middle of the range, always", constant_mse_norm(test_NK, task)),
        ("train mean, always", trivial),
        ("ridge regression on character n-grams", ridge_mse_norm(texts[0], train_NK, texts[1], test_NK, task)),
    ):
        table.add_row(name, f"{value:.5f}", f"{value / trivial:.3f}")
    embedded_NK = embedding_answers(texts[0], train_NK, texts[1], task)
    if embedded_NK is None:
        table.add_row("ridge regression on sentence embeddings", "-", "pip install ppe_lora\\[embeddings]")
    else:
        value = mse_norm(embedded_NK, test_NK, Scale(task.low, task.high))
        table.add_row("ridge regression on sentence embeddings", f"{value:.5f}", f"{value / trivial:.3f}")
    console.print(table)


def export(recipe: Recipe) -> None:
    """Merge the selected adapter, reload the result without our code, compare the answers; write what engines want."""
    with _followers(recipe) as followers:
        _export(recipe, followers)


def _export(recipe: Recipe, followers: "Followers") -> None:
    from ppe_lora.export.engines import export_for_engines
    from ppe_lora.export.stage import export_run

    export_run(recipe, data_dir(recipe), run_dir(recipe))
    export_for_engines(recipe, run_dir(recipe))
    followers.start()


def prove(recipe: Recipe, export: str, url: str | None, model: str | None) -> None:
    """Hold a served export against its certificate, and print the verdict (see `ppe_lora.export.served`).

    Raises:
        RunError: There is no such export, or `url` is missing or has no place.
        EngineError: The engine cannot be reached, or does not answer as asked.
    """
    from ppe_lora.export.proof import prove_export

    console.print(prove_export(recipe, run_dir(recipe), export, url, model))


def push(folder: Path, repository: str, *, private: bool) -> None:
    """Upload an export folder to the Hugging Face Hub (see `ppe_lora.export.hub.push_folder`)."""
    from ppe_lora.export.hub import push_folder

    console.print(f"{folder} is at {push_folder(folder, repository, private=private)}")


def serve(sources: Sequence[str], settings: "Settings") -> None:
    """Answer requests over HTTP until told to stop (see `ppe_lora.serving.server.serve`)."""
    from ppe_lora.serving.server import serve as run_server

    run_server(sources, settings)


def report(where: Path, overrides: Sequence[str] = ()) -> None:
    """Write `report.html` and `summary.md` of a run, given by its recipe or by its folder, and print the verdict.

    Raises:
        RunError: There is no such run, or it is not finished.
    """
    from ppe_lora.recipe import load_recipe
    from ppe_lora.report.run_folder import config_of

    recipe = config_of(where, overrides) if where.is_dir() else load_recipe(where, overrides)
    _report(recipe, where if where.is_dir() else run_dir(recipe))


def _report(recipe: Recipe, folder: Path) -> None:
    from ppe_lora.report.run_report import write_report

    if _is_first_process():
        console.print(write_report(recipe, data_dir(recipe), folder), markup=False)


def run(recipe: Recipe, *, fresh: bool = False) -> None:
    """All stages. What is complete and unchanged is skipped; an unfinished training is resumed."""
    build_data(recipe)
    with _followers(recipe) as followers:
        _train(recipe, followers, resume=True, fresh=fresh)
        _evaluate(recipe, followers)
        _export(recipe, followers)
        _report(recipe, run_dir(recipe))


def _followers(recipe: Recipe) -> "Followers":
    """The processes that show the run to W&B and Weave, if the recipe says so."""
    from ppe_lora.tracking.follower import Followers

    return Followers(recipe, data_dir(recipe), run_dir(recipe))


def sync_tracking(run: Path, overrides: Sequence[str]) -> None:
    """Send what W&B and Weave lack of a run, and wait for it (see `ppe_lora.tracking.sync`).

    Raises:
        RunError: There is no such run, it tracks nothing, or something could not be sent.
    """
    from ppe_lora.errors import RunError
    from ppe_lora.recipe import load_recipe
    from ppe_lora.tracking.sync import sync

    if not (run / "config.yaml").is_file():
        raise RunError(f"{run}: expected a run folder such as checkpoints/demo; got no config.yaml in it")
    recipe = load_recipe(run / "config.yaml", overrides)
    for line in sync(recipe, data_dir(recipe), run):
        console.print(line, markup=False)


def sweep(folder: Path, overrides: Sequence[str], gpus: Sequence[str], suffix: str, out: Path | None) -> None:
    """Run every recipe of a folder, and write the leaderboard of what is finished.

    Args:
        folder: Holds the recipes.
        overrides: For each of them.
        gpus: One run at a time on each; none is one run at a time on what there is.
        suffix: Appended to the runs' names and to the folder's.
        out: Where the leaderboard goes; by default `checkpoints/<name of the folder>/`, which holds the logs, too.

    Raises:
        RecipeError: A recipe cannot be loaded, or two runs would have one name; nothing has been run.
        RunError: A run failed (after all have ended), or the runs cannot share a table.
        Interrupted: A signal came; what ran has saved itself.
    """
    from ppe_lora.errors import PpeError, RunError
    from ppe_lora.evaluation.leaderboard import build_leaderboard
    from ppe_lora.report.leaderboard import write_leaderboard
    from ppe_lora.report.leaderboard_page import FILE_NAME as LEADERBOARD_PAGE
    from ppe_lora.report.leaderboard_page import write_leaderboard_page
    from ppe_lora.sweep import is_finished, load_sweep, run_job, run_jobs

    planned = load_sweep(folder, overrides, suffix)
    recipes = [one.recipe for one in planned]
    log_dir = Path("checkpoints") / f"{folder.resolve().name}{suffix}"
    todo = [one for one in planned if not is_finished(one.recipe, data_dir(one.recipe), run_dir(one.recipe))]
    console.print(f"{log_dir}: {len(planned)} runs, {len(planned) - len(todo)} of them complete and unchanged")
    if len(gpus) > 1:  # two runs must not make one data set at the same time
        for recipe in {one.recipe.data.name: one.recipe for one in todo}.values():
            with contextlib.suppress(PpeError):  # the run that needs it will say so
                build_data(recipe)
    outcomes = run_jobs([run_job(one, log_dir) for one in todo], gpus)
    failed = {outcome.name: outcome.reason for outcome in outcomes if outcome.ended == "failed"}
    if len(failed) < len(recipes):
        board = build_leaderboard({run_dir(recipe): recipe for recipe in recipes}, failed)
        console.print(write_leaderboard(out or log_dir, board), markup=False)
        write_leaderboard_page(out or log_dir, log_dir.name, board)
        console.print(str((out or log_dir) / LEADERBOARD_PAGE))
    if failed:
        reasons = "".join(f"\n  {name}: {reason} ({log_dir / name}.log)" for name, reason in failed.items())
        raise RunError(
            f"sweep: {len(failed)} of {len(recipes)} runs failed; the same command tries them again{reasons}"
        )


def compare(first: str, second: str) -> None:
    """Say whether the second is better than the first on the same test rows, and write it down.

    Raises:
        RunError: There is no such run, it is unfinished, or the two cannot be compared.
        ModelError: An adapter does not fit the run's base model.
    """
    from ppe_lora.compare import compare_sides
    from ppe_lora.report.comparison import write_comparison
    from ppe_lora.report.comparison_page import FILE_NAME, write_comparison_page

    compared = compare_sides((first, second), Path("checkpoints"), data_dir)
    console.print(write_comparison(compared.folder, compared.comparison), markup=False)
    write_comparison_page(compared.folder, compared.comparison, (compared.first, compared.second))
    console.print(str(compared.folder / FILE_NAME))


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
    from ppe_lora.student.base import resolve_tokenizer
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
    for piece, token, supervised in tokens_of(row, recipe.task, load_tokenizer(resolve_tokenizer(recipe.student))):
        table.add_row(str(token), repr(piece)[1:-1], "[green]yes[/green]" if supervised else "")
    console.print(table)


def convert_data(source: Path, target: Path, to: str, recipe: Recipe | None, skip_invalid: bool) -> None:
    """Convert a data set to another format (see `ppe_lora.corpus.convert.convert`) and print what was written.

    Raises:
        DataError: There is no such format, or the data cannot be converted.
    """
    from ppe_lora.corpus.convert import convert
    from ppe_lora.corpus.formats import FORMATS
    from ppe_lora.errors import DataError
    from ppe_lora.tasks.scores import ScoresTask

    found = next((name for name in FORMATS if name == to), None)
    if found is None:
        raise DataError(f"--to: expected one of {', '.join(FORMATS)}; got {to}")
    converted = convert(source, target, found, recipe.task if recipe else ScoresTask(), skip_invalid)
    written = ", ".join(f"{count} {split}" for split, count in converted.rows.items())
    console.print(f"{target}: {written} rows as {found}; every line is in {target}/report.jsonl")
    if converted.skipped:
        console.print(f"  left out {converted.skipped} that are not valid")


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def doctor(recipes: Path) -> None:
    """Print what this machine can do, and which recipes of a folder fit it."""
    from rich.table import Table

    from ppe_lora.recipe import load_recipe
    from ppe_lora.student.estimate import fit_here
    from ppe_lora.student.machine import describe_machine

    machine = Table("what", "found", "remark")
    for fact in describe_machine():
        machine.add_row(*map(str, fact))
    console.print(machine)
    shipped = Table("recipe", "fits", "why")
    for path in sorted(recipes.rglob("*.yaml")):
        fit, why = fit_here(load_recipe(path))
        shipped.add_row(str(path), "[green]yes[/green]" if fit else "[red]no[/red]", why)
    console.print(shipped)


def estimate(recipe: Recipe, rows: int | None) -> None:
    """Print memory, speed and time of a recipe's training, on this machine and on usual cards, before it runs.

    Raises:
        DataError: The number of rows cannot be known beforehand.
        ModelError: The model's size is not known.
    """
    from rich.table import Table

    from ppe_lora.errors import DataError, ModelError
    from ppe_lora.student.estimate import CARDS, estimate, expected_rows, this_machine
    from ppe_lora.student.machine import GB, model_size

    size = model_size(recipe.student)
    if size is None:
        raise ModelError(f"{recipe.student.model}: unknown size; download it and name its folder")
    counts = expected_rows(recipe) if rows is None else (rows, round(rows * 0.05))
    if counts is None:
        raise DataError("how many rows the import has is not known before it is read; give --rows")
    table = Table(
        "card", "memory", "fits", "rows/s", "training", "evaluation", title=f"{recipe.name}: {counts[0]:,} rows"
    )
    for card in (this_machine(), *CARDS):
        told = estimate(recipe, size, card, train_rows=counts[0], valid_rows=counts[1])
        table.add_row(
            card.name,
            f"{told.need.total / GB:.1f} of {card.memory / GB:.0f} GB",
            "[green]yes[/green]" if told.fits else "[red]no[/red]",
            f"{told.rows_per_s:.3g}",
            _duration(told.training_s),
            _duration(told.evaluation_s),
        )
    console.print(table)
    console.print("estimates from counts, not measurements; the formulas are in ppe_lora/student/estimate.py")
