"""A finished run as it lies on disk, with everything its report is made of. N test rows, K keys."""

import csv
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppe_lora.artifacts import check_files, read_json, read_jsonl
from ppe_lora.corpus.description import DataSet, read_dataset
from ppe_lora.corpus.rows import Row, split_path
from ppe_lora.errors import RunError
from ppe_lora.evaluation.calibration import Calibration, read_calibrations
from ppe_lora.evaluation.metrics import Matrix
from ppe_lora.evaluation.stored import check_finished, check_recipe
from ppe_lora.evaluation.test_set import check_test_rows
from ppe_lora.recipe import Recipe
from ppe_lora.tasks.scores import ScoresTask


class RunFolder(NamedTuple):
    """The files of a run whose test rows were decoded, and its data set."""

    path: Path
    recipe: Recipe
    data: DataSet
    run: dict[str, Any]
    """The manifest of the training."""
    test: dict[str, Any]
    """The manifest of the test rows' evaluation."""
    metrics: dict[str, float]
    """Of the test rows."""
    rows: list[Row]
    """The test rows that were decoded, in the order of `predictions`."""
    predictions: list[dict[str, Any]]
    baselines: dict[str, Matrix]
    """Answers (N, K) of each baseline, in task units."""
    calibration: Calibration | None
    """The correction that is served; None where the run has none."""
    engine_calibration: Calibration | None
    """The one for engines, which do not read the head, where `calibration` uses it; else None."""
    epochs: dict[int, dict[str, float]]
    """Metrics of each epoch, on the validation rows."""
    epoch_seconds: dict[int, float]
    """Time of each epoch's steps, without its evaluation; epochs that were interrupted are left out."""
    train_seconds: float
    """Of all starts of the training, evaluation of the epochs included; steps that a kill lost are not in it."""
    merged: dict[str, Any] | None
    """The manifest of the export; None where nothing was exported."""
    tracked: dict[str, str | None]
    """Each tracker that has a record of the run, and why its last try failed, if it did."""


def read_run_folder(recipe: Recipe, data_dir: Path, run_dir: Path) -> RunFolder:
    """Read a run.

    Raises:
        RunError: The run is not finished (see `check_finished`), or is of another recipe or of other test rows.
        DataError: The data set is missing or broken.
        ModelError: The correction is broken.
    """
    check_finished(run_dir)
    check_recipe(
        recipe,
        run_dir,
        "Name the folder itself to report on what it holds, or make the recipe's own run with `ppe-lora run RECIPE`",
    )
    run, test = read_json(run_dir / "manifest.json"), read_json(run_dir / "test" / "manifest.json")
    data = read_dataset(data_dir, recipe.task)
    check_test_rows(run_dir, split_path(data_dir, "test"))
    if "latency" not in test:
        raise RunError(f"{run_dir / 'test'}: is of an earlier version; run `ppe-lora evaluate RECIPE`")
    predictions = read_jsonl(run_dir / "test" / "eval_predictions.jsonl")
    calibration, engine_calibration = read_calibrations(run_dir, recipe.task)
    row_of = {row.id: row for row in data.by_split["test"]}
    return RunFolder(
        path=run_dir,
        recipe=recipe,
        data=data,
        run=run,
        test=test,
        metrics=read_json(run_dir / "test" / "eval_metrics.json"),
        rows=[row_of[line["id"]] for line in predictions],
        predictions=predictions,
        baselines=_baselines(run_dir / "test" / "baseline_predictions.jsonl", predictions, recipe.task)
        | _model_baselines(run_dir / "baselines", test, predictions, recipe.task),
        calibration=calibration,
        engine_calibration=engine_calibration,
        epochs={int(path.parent.name): read_json(path) for path in sorted(run_dir.glob("epochs/*/eval_metrics.json"))},
        epoch_seconds=_epoch_seconds(run_dir / "train_log.csv"),
        train_seconds=_earlier_seconds(run_dir / "train_log.csv") + run["seconds_of_last_start"],
        merged=_optional(run_dir / "merged" / "manifest.json"),
        tracked=_tracked(run_dir / "tracking"),
    )


def _optional(path: Path) -> dict[str, Any] | None:
    found: dict[str, Any] | None = read_json(path) if path.is_file() else None
    return found


def _tracked(folder: Path) -> dict[str, str | None]:
    problems = {path.stem: path.read_text(encoding="utf-8").strip() for path in folder.glob("*.problem")}
    return {path.stem: problems.get(path.stem) for path in sorted(folder.glob("*.json"))}


def _baselines(path: Path, predictions: list[dict[str, Any]], task: ScoresTask) -> dict[str, Matrix]:
    lines = {line["id"]: line for line in read_jsonl(path)}
    missing = [row["id"] for row in predictions if row["id"] not in lines]
    if missing or not lines:
        raise RunError(
            f"{path}: expected the answers of baselines to all {len(predictions)} test rows; got none to "
            f"{len(missing)}; run `ppe-lora evaluate RECIPE` again"
        )
    names = [name for name in next(iter(lines.values())) if name != "id"]
    silent = dict.fromkeys(task.keys, np.nan)
    return {
        name: np.array(
            [[(lines[row["id"]][name] or silent)[key] for key in task.keys] for row in predictions], dtype=float
        )
        for name in names
    }


def _model_baselines(
    folder: Path, test: dict[str, Any], predictions: list[dict[str, Any]], task: ScoresTask
) -> dict[str, Matrix]:
    """What `ppe-lora baselines RECIPE --models` wrote for these test rows, if it did."""
    found = _optional(folder / "manifest.json")
    if found is None or found["inputs"]["test_rows"] != test["inputs"]["test_rows"]:
        return {}
    check_files(folder, "`ppe-lora baselines RECIPE --models`")
    return _baselines(folder / "predictions.jsonl", predictions, task)


def _epoch_seconds(path: Path) -> dict[int, float]:
    """Per epoch the time from its first step's end to its last step's, made up for that first step."""
    times: dict[int, list[float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            times.setdefault(max(1, int(np.ceil(float(line["epoch"]) - 1e-9))), []).append(float(line["seconds"]))
    whole = {epoch: own for epoch, own in times.items() if len(own) > 1 and own == sorted(own)}
    return {epoch: (own[-1] - own[0]) * len(own) / (len(own) - 1) for epoch, own in whole.items()}


def _earlier_seconds(path: Path) -> float:
    """What the starts before the last one took, by the log, whose clock begins anew with each start."""
    with path.open(newline="", encoding="utf-8") as file:
        seconds = [float(line["seconds"]) for line in csv.DictReader(file)]
    return sum(sooner for sooner, later in pairwise(seconds) if later < sooner)
