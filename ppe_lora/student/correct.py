"""After training: fit the head on training rows and the correction on validation rows, and apply both."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppe_lora.artifacts import read_json, read_jsonl, write_json
from ppe_lora.console import progress
from ppe_lora.corpus.rows import targets_matrix
from ppe_lora.evaluation.calibration import LEAST_ROWS, Calibration, fit_calibration
from ppe_lora.evaluation.metrics import Matrix, error_metrics, renamed
from ppe_lora.recipe import Recipe
from ppe_lora.student.evaluate import EncodedSplit
from ppe_lora.student.head import FILE, fit_head, layers_to_try, request_states
from ppe_lora.student.head import LEAST_ROWS as HEADS_LEAST_ROWS
from ppe_lora.student.load import StudentModel

CALIBRATION_FILE = "calibration.json"


def fit_correction(
    model: StudentModel, recipe: Recipe, run_dir: Path, train: EncodedSplit, valid: EncodedSplit, pad_id: int
) -> None:
    """Write `calibration.json` of a finished training, and `head.npz` if the correction uses the head.

    With fewer than 20 validation rows there is neither: answers stay as they are.

    Args:
        model: With the selected adapter.
        recipe: The experiment.
        run_dir: Its run folder, with the selected epoch's predictions.
        train: Rows that the head is fitted on.
        valid: Rows that the correction is fitted on.
        pad_id: Any token id.
    """
    for stale in (run_dir / FILE, run_dir / CALIBRATION_FILE):
        stale.unlink(missing_ok=True)
    task = recipe.task
    epoch = read_json(run_dir / "manifest.json")["selected_epoch"]
    predicted = {row["id"]: row for row in read_jsonl(run_dir / "epochs" / f"{epoch:03d}" / "eval_predictions.jsonl")}
    if len(valid.rows) < LEAST_ROWS:
        return
    mean_NK, sd_NK = (
        _matrix([predicted[row.id][name] for row in valid.rows], task.keys)
        for name in ("posterior_mean", "posterior_sd")
    )
    head, head_NK = None, None
    if recipe.evaluate.head and len(train.rows) >= HEADS_LEAST_ROWS:
        layers = layers_to_try(model)
        batch_rows = recipe.evaluate.batch_rows
        with progress("reading hidden states", len(train.rows) + len(valid.rows)) as advance:
            train_NLD, valid_NLD = (
                request_states(model, split.encoded, layers, batch_rows=batch_rows, pad_id=pad_id, advance=advance)
                for split in (train, valid)
            )
        head = fit_head(train_NLD, layers, targets_matrix(train.rows, task))
        head_NK = head.read(valid_NLD[:, layers.index(head.layer)], task.low, task.high)
    found = fit_calibration(mean_NK, sd_NK, targets_matrix(valid.rows, task), task, head_NK)
    if head is not None and found.uses_head:
        head.save(run_dir)
    write_json(run_dir / CALIBRATION_FILE, found.as_json(task))


def corrected(
    predictions: Sequence[Mapping[str, Any]], calibration: Calibration | None, recipe: Recipe
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Predictions with `calibrated` answers and their intervals, `low` and `high`, beside the others, and what those
    give: the error metrics (`..._calibrated`) and `coverage_calibrated@80`. Without a calibration the answers are the
    posterior means, and there are no intervals."""
    task = recipe.task
    mean_NK, sd_NK, target_NK = (
        _matrix([row[name] for row in predictions], task.keys) for name in ("posterior_mean", "posterior_sd", "target")
    )
    if calibration is None:
        shown = [{**row, "calibrated": row["posterior_mean"]} for row in predictions]
        errors = error_metrics(mean_NK, target_NK, task)
        return shown, {renamed(name, "calibrated"): value for name, value in errors.items()}
    head_NK = _matrix([row["head"] for row in predictions], task.keys) if calibration.uses_head else None
    center_NK = calibration.correct(mean_NK, task, head_NK)
    rounded_NK = np.vectorize(task.round, otypes=[float])(center_NK)
    low_NK, high_NK = calibration.interval(center_NK, sd_NK, task)
    named = {
        "calibrated": [[task.round(value) for value in values] for values in center_NK.tolist()],
        "low": low_NK.round(2).tolist(),
        "high": high_NK.round(2).tolist(),
    }
    shown = [
        {**row, **{name: dict(zip(task.keys, values[index], strict=True)) for name, values in named.items()}}
        for index, row in enumerate(predictions)
    ]
    errors = error_metrics(rounded_NK, target_NK, task)
    metrics = {renamed(name, "calibrated"): value for name, value in errors.items()}
    return shown, metrics | {"coverage_calibrated@80": float(((low_NK <= target_NK) & (target_NK <= high_NK)).mean())}


def _matrix(rows: Sequence[Mapping[str, float]], keys: Sequence[str]) -> Matrix:
    return np.array([[row[key] for key in keys] for row in rows], dtype=float)
