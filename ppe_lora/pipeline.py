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
resumed). A command holds the lock of the run or data set that it writes (`ppe_lora.locks`), `run` over all stages. W&B
and Weave are fed from the run folder, by processes of their own. torch is imported inside the stages that need it.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ppe_lora.boundary import is_first_process
from ppe_lora.console import console, warn
from ppe_lora.evaluation.runs import A_RUN, RUNS, find_run, no_run
from ppe_lora.interruption import interruptible
from ppe_lora.locks import holding
from ppe_lora.recipe import Recipe

if TYPE_CHECKING:
    from ppe_lora.serving.settings import Settings
    from ppe_lora.tracking.follower import Followers


def data_dir(recipe: Recipe) -> Path:
    """Where the recipe's rows are."""
    return Path("data") / recipe.data.name


def run_dir(recipe: Recipe) -> Path:
    """Where the recipe's run is."""
    return RUNS / recipe.name


def say(line: str) -> None:
    """Print a line as it is."""
    console.print(line)


def alone_in(run: Path) -> contextlib.AbstractContextManager[None]:
    """Be the only process that works in a run folder.

    Raises:
        InUse: Another one does.
    """
    return holding(run, "wait for it to end, or give this run another name (name=...)")


def alone_in_data(folder: Path, wait: Callable[[str], None] | None = None) -> contextlib.AbstractContextManager[None]:
    """Be the only process that writes a data set; `wait` as for `holding`.

    Raises:
        InUse: Another one does.
    """
    return holding(folder, "wait for it to end, or give this data set another name (data.name=...)", wait)


def build_data(recipe: Recipe, *, skip_corrupt: bool = False, wait: Callable[[str], None] | None = say) -> None:
    """Make the data set, or find it up to date. Under a launcher only the first process works; training waits for it.

    Args:
        recipe: Names it and its source.
        skip_corrupt: Pass over corrupt lines of raw answers.
        wait: Called before this waits for another process that makes it; None refuses to wait.

    Raises:
        InUse: Another process makes it, or asks its teacher.
        DataError: The source cannot be read, or too few rows survive the filters.
        PpeError: The teacher cannot be reached, or its budget is spent. What it said is kept.
    """
    from ppe_lora.corpus.build import build_dataset

    if not is_first_process():
        return
    folder = data_dir(recipe)
    left = f"{folder} is not finished; what a teacher has answered is kept, and the same command goes on from there"
    with alone_in_data(folder, wait), interruptible(left):
        report = build_dataset(recipe, folder, skip_corrupt=skip_corrupt)
    kept = ", ".join(f"{count} {split}" for split, count in report.rows.items())
    console.print(f"{folder}: {kept} rows, version {report.dataset_version}" + ("" if report.made else " (unchanged)"))
    for word, counts in (("rejected", report.rejected), ("left out", report.dropped)):
        if any(counts.values()):
            shown = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
            console.print(f"  {word} of {report.asked}: {shown}")
    for note in report.notes:
        console.print(f"  {note}")
    if report.made:
        console.print("  to look at it: `ppe-lora data stats RECIPE` writes data_report.html")


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


def train(recipe: Recipe, *, resume: bool = False, fresh: bool = False) -> None:
    """Train the student and select its best epoch (see `ppe_lora.student.training.train`)."""
    with alone_in(run_dir(recipe)), _followers(recipe) as followers:
        _train(recipe, followers, resume=resume, fresh=fresh)


def _train(recipe: Recipe, followers: "Followers", *, resume: bool, fresh: bool) -> None:
    from ppe_lora.student import training

    if is_first_process() and (fresh or not training.is_trained(recipe, data_dir(recipe), run_dir(recipe))):
        _warn_of_later_stages(recipe)
    if fresh:
        followers.wait_for_earlier_ones(say)
    with interruptible(partial(training.kept, run_dir(recipe))):
        # Followers start when the run folder is there, and not before --fresh has deleted an earlier one.
        training.train(recipe, data_dir(recipe), run_dir(recipe), resume=resume, fresh=fresh, on_start=followers.start)


def _warn_of_later_stages(recipe: Recipe) -> None:
    """Say what the stages behind the training will lack: there are hours to install it."""
    from ppe_lora.export.needs import missing_for_export
    from ppe_lora.tracking.follower import missing_for_tracking

    for problem in [*missing_for_export(recipe), *missing_for_tracking(recipe.track)]:
        warn(problem)


def evaluate(recipe: Recipe) -> None:
    """Decode the test rows with the selected adapter, once."""
    with alone_in(run_dir(recipe)), _followers(recipe) as followers:
        _evaluate(recipe, followers)


def _evaluate(recipe: Recipe, followers: "Followers") -> None:
    from ppe_lora.student.test_rows import evaluate_test_rows

    kept = f"the training of {run_dir(recipe)} is kept; its test rows are not measured yet, the same command does it"
    with interruptible(kept):
        evaluate_test_rows(recipe, data_dir(recipe), run_dir(recipe))
    followers.start()


def export(recipe: Recipe) -> None:
    """Merge the selected adapter, reload the result without our code, compare the answers; write what engines want."""
    with alone_in(run_dir(recipe)), _followers(recipe) as followers:
        _export(recipe, followers)


def _export(recipe: Recipe, followers: "Followers") -> None:
    from ppe_lora.export.engines import export_for_engines
    from ppe_lora.export.stage import export_run

    kept = f"what {run_dir(recipe)} has of exports is whole; the same command makes the missing ones"
    with interruptible(kept):
        export_run(recipe, data_dir(recipe), run_dir(recipe))
        export_for_engines(recipe, run_dir(recipe))
    followers.start()


def serve(sources: Sequence[str], settings: "Settings") -> None:
    """Answer requests over HTTP until told to stop (see `ppe_lora.serving.server.serve`)."""
    from ppe_lora.serving.server import serve as run_server

    run_server(sources, settings)


def report(run: str, overrides: Sequence[str] = ()) -> None:
    """Write `report.html` and `summary.md` of a run, given by its folder, name or recipe, and print the verdict.

    Raises:
        RunError: There is no such run, or it is not finished.
    """
    from ppe_lora.recipe import load_recipe

    folder = find_run(run)
    if folder is None and not Path(run).is_file():
        raise no_run(run, f"{A_RUN} or its recipe file", "neither")
    recipe = load_recipe(folder / "config.yaml" if folder else Path(run), overrides)
    with alone_in(folder or run_dir(recipe)):
        _report(recipe, folder or run_dir(recipe))


def _report(recipe: Recipe, folder: Path) -> None:
    from ppe_lora.report.run_report import write_report

    kept = f"{folder} is unchanged but for its report; the same command writes that"
    if is_first_process():
        with interruptible(kept):
            console.print(write_report(recipe, data_dir(recipe), folder))


def run(recipe: Recipe, *, fresh: bool = False) -> None:
    """All stages. What is complete and unchanged is skipped; an unfinished training is resumed."""
    from ppe_lora.student.launch import check_launch

    check_launch()
    with alone_in(run_dir(recipe)), _followers(recipe) as followers:
        build_data(recipe)
        _train(recipe, followers, resume=True, fresh=fresh)
        _evaluate(recipe, followers)
        _export(recipe, followers)
        _report(recipe, run_dir(recipe))


def _followers(recipe: Recipe) -> "Followers":
    """The processes that show the run to W&B and Weave, if the recipe says so."""
    from ppe_lora.tracking.follower import Followers

    return Followers(recipe, data_dir(recipe), run_dir(recipe))


def sync_tracking(run: str, overrides: Sequence[str]) -> None:
    """Send what W&B and Weave lack of a run, and wait for it (see `ppe_lora.tracking.sync`).

    Raises:
        RunError: There is no such run, it tracks nothing, or something could not be sent.
    """
    from ppe_lora.recipe import load_recipe
    from ppe_lora.tracking.sync import sync

    folder = find_run(run)
    if folder is None:
        raise no_run(run, A_RUN, "none")
    recipe = load_recipe(folder / "config.yaml", overrides)
    for line in sync(recipe, data_dir(recipe), folder):
        console.print(line)


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
        RunError: A GPU is not here, a run failed (after all have ended), or the runs cannot share a table.
        Interrupted: A signal came; what ran has saved itself.
        InUse: Another sweep of this folder is at work.
    """
    log_dir = RUNS / f"{folder.resolve().name}{suffix}"
    # Not the lock of the folder itself: a run may have the sweep's name.
    lock = log_dir.with_name(f".{log_dir.name}.sweep.lock")
    with holding(log_dir, "wait for it to end, or make another one with --suffix", lock=lock):
        _sweep(folder, overrides, gpus, suffix, log_dir, out)


def _sweep(
    folder: Path, overrides: Sequence[str], gpus: Sequence[str], suffix: str, log_dir: Path, out: Path | None
) -> None:
    from ppe_lora.errors import PpeError, RunError
    from ppe_lora.evaluation.leaderboard import build_leaderboard
    from ppe_lora.report.leaderboard import write_leaderboard
    from ppe_lora.report.leaderboard_page import FILE_NAME as LEADERBOARD_PAGE
    from ppe_lora.report.leaderboard_page import write_leaderboard_page
    from ppe_lora.sweep import check_gpus, is_finished, load_sweep, run_job, run_jobs

    planned = load_sweep(folder, overrides, suffix)
    check_gpus(gpus)
    recipes = [one.recipe for one in planned]
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
        with holding(out or log_dir, wait=say):  # another sweep may write there, too
            console.print(write_leaderboard(out or log_dir, board))
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
    from ppe_lora.compare import compare_sides, home_of
    from ppe_lora.report.comparison import write_comparison
    from ppe_lora.report.comparison_page import FILE_NAME, write_comparison_page

    with alone_in(home_of((first, second))):
        compared = compare_sides((first, second), data_dir)
        console.print(write_comparison(compared.folder, compared.comparison))
        write_comparison_page(compared.folder, compared.comparison, (compared.first, compared.second))
    console.print(str(compared.folder / FILE_NAME))
