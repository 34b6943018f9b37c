"""The correction applied to predictions: what is served, its intervals and its errors. N rows, K keys."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppe_lora.evaluation.calibration import Calibration
from ppe_lora.evaluation.metrics import Matrix, error_metrics, renamed
from ppe_lora.tasks.scores import ScoresTask


def corrected(
    predictions: Sequence[Mapping[str, Any]], calibration: Calibration | None, task: ScoresTask
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Predictions with `calibrated` answers beside the others and with their intervals, `low` and `high`, and what
    those give: the error metrics (`..._calibrated`) and `coverage_calibrated@80`. Without a calibration the answers are
    the posterior means, and the intervals stay those of the distributions."""
    mean_NK, target_NK = posterior_means(predictions, task), by_key(predictions, "target", task)
    shown: dict[str, list[list[float]]] = {}
    coverage: dict[str, float] = {}
    if calibration is None:
        shown["calibrated"] = [[row["posterior_mean"][key] for key in task.keys] for row in predictions]
    else:
        head_NK = by_key(predictions, "head", task) if calibration.uses_head else None
        center_NK = calibration.correct(mean_NK, task, head_NK)
        low_NK, high_NK = calibration.interval(center_NK, by_key(predictions, "posterior_sd", task), task)
        shown["calibrated"] = [[task.round(value) for value in row] for row in center_NK.tolist()]
        ends = {"low": low_NK, "high": high_NK}
        shown |= {name: [[task.fine(end) for end in row] for row in end_NK.tolist()] for name, end_NK in ends.items()}
        coverage["coverage_calibrated@80"] = float(((low_NK <= target_NK) & (target_NK <= high_NK)).mean())
    errors = error_metrics(np.array(shown["calibrated"], dtype=float), target_NK, task)
    rows = [
        {**row, **{name: dict(zip(task.keys, values[index], strict=True)) for name, values in shown.items()}}
        for index, row in enumerate(predictions)
    ]
    return rows, {renamed(name, "calibrated"): value for name, value in errors.items()} | coverage


UNROUNDED = "posterior_mean_unrounded"


def posterior_means(predictions: Sequence[Mapping[str, Any]], task: ScoresTask) -> Matrix:
    """What a correction is made from, (N, K): the means of the distributions; as answers, where an earlier version
    trained the run and kept no others."""
    return by_key(predictions, UNROUNDED if UNROUNDED in predictions[0] else "posterior_mean", task)


def by_key(predictions: Sequence[Mapping[str, Any]], name: str, task: ScoresTask) -> Matrix:
    """A field of predictions that holds a number per key, (N, K)."""
    return np.array([[row[name][key] for key in task.keys] for row in predictions], dtype=float)
