"""Metrics on decoded answers.

Shape suffixes: N rows, K keys. `_norm` means that the task's range is mapped to 0-1 first, `_raw` task units.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppe_lora.errors import MetricError
from ppe_lora.tasks.scores import Answer, Rejected, ScoresTask

Matrix = NDArray[np.float64]

METRIC_VERSION = 2
"""Raised when the meaning of a metric changes: figures of different versions are not comparable."""


_COLLAPSE_ROWS = 10


class Scale(NamedTuple):
    """The range of a score in task units."""

    low: float
    high: float

    @property
    def span(self) -> float:
        """Width of the range: the distance that is 1.0 on the unit scale."""
        return self.high - self.low


def mse_raw(predicted_NK: Matrix, target_NK: Matrix) -> float:
    """Mean squared error over all rows and keys, in squared task units.

    Raises:
        MetricError: No rows, or shapes that differ.
    """
    return float(np.mean(_errors(predicted_NK, target_NK) ** 2))


def mse_norm(predicted_NK: Matrix, target_NK: Matrix, scale: Scale) -> float:
    """Mean squared error on the unit scale: 0.0 is perfect, a tenth of the range off everywhere is 0.01.

    Raises:
        MetricError: No rows (an empty mean is not a perfect score), or shapes that differ.

    Example:
        >>> mse_norm(np.array([[100.0, 50.0]]), np.array([[50.0, 50.0]]), Scale(0, 100))
        0.125
    """
    return mse_raw(predicted_NK, target_NK) / scale.span**2


def mae_raw(predicted_NK: Matrix, target_NK: Matrix) -> float:
    """Mean absolute error over all rows and keys, in task units.

    Raises:
        MetricError: No rows, or shapes that differ.
    """
    return float(np.mean(np.abs(_errors(predicted_NK, target_NK))))


def varies(values_NK: Matrix) -> NDArray[np.bool_]:
    """Which keys have more than one value, shape (K,). A variance above 0 does not say so: the mean of equal decimal
    fractions is rounded, and they differ from it."""
    return np.asarray(np.ptp(values_NK, axis=0) > 0)


def r2_per_key(predicted_NK: Matrix, target_NK: Matrix) -> Matrix:
    """Coefficient of determination of each key, shape (K,): 1 is perfect, 0 as good as the mean of these targets.

    A key whose targets do not vary has no r2: NaN.

    Raises:
        MetricError: No rows, or shapes that differ.
    """
    residual_K: Matrix = np.sum(_errors(predicted_NK, target_NK) ** 2, axis=0)
    total_K = np.sum((target_NK - target_NK.mean(axis=0)) ** 2, axis=0)
    unexplained_K = np.full_like(residual_K, np.nan)
    np.divide(residual_K, total_K, out=unexplained_K, where=varies(target_NK))
    return 1.0 - unexplained_K


def within_tolerance(predicted_NK: Matrix, target_NK: Matrix, scale: Scale, percent: float) -> float:
    """Share of single scores that are off by at most `percent` of the range.

    Raises:
        MetricError: No rows, or shapes that differ.
    """
    allowed = percent / 100 * scale.span
    return float(np.mean(np.abs(_errors(predicted_NK, target_NK)) <= allowed + 1e-9))


def worst_case_mse_norm(target_NK: Matrix, scale: Scale) -> Matrix:
    """Per row, shape (N,): the largest mse_norm any admissible answer could have there."""
    rejected_NK = np.full_like(target_NK, np.nan)
    return np.asarray(np.mean((absolute_errors(rejected_NK, target_NK, scale) / scale.span) ** 2, axis=1))


def absolute_errors(answer_NK: Matrix, target_NK: Matrix, scale: Scale) -> Matrix:
    """How far off each answer is, (N, K), in task units; NaN, a rejected answer, is as far as can be."""
    farthest_NK = np.maximum(target_NK - scale.low, scale.high - target_NK)
    return np.where(np.isnan(answer_NK), farthest_NK, np.abs(answer_NK - target_NK))


def score(outcomes: Sequence[Answer | Rejected], target_NK: Matrix, task: ScoresTask) -> dict[str, float]:
    """Every metric of one evaluation as a flat mapping, for the outcomes of decoding N rows.

    Error metrics are over accepted answers; with none accepted they are left out rather than invented.
    `mse_norm_strict` counts a rejected answer as the worst admissible error, so that silence cannot win.

    Args:
        outcomes: Parsed answers, one per row.
        target_NK: Targets in task units, same order.
        task: Key order and range.

    Raises:
        MetricError: No rows, or one side has more rows than the other.
    """
    if len(outcomes) != len(target_NK) or not len(outcomes):
        raise MetricError(f"metrics: expected as many outcomes as targets, at least 1; got {len(outcomes)}")
    scale = Scale(task.low, task.high)
    accepted_N = np.array([isinstance(outcome, Answer) for outcome in outcomes])
    json_N = [isinstance(outcome, Answer) or outcome.is_json for outcome in outcomes]
    metrics = {
        "rows": float(len(outcomes)),
        "json_valid_rate": float(np.mean(json_N)),
        "schema_valid_rate": float(np.mean(accepted_N)),
    }
    strict_N = worst_case_mse_norm(target_NK, scale)
    if accepted_N.any():
        predicted_NK = np.array([outcome.values for outcome in outcomes if isinstance(outcome, Answer)])
        kept_NK = target_NK[accepted_N]
        metrics |= error_metrics(predicted_NK, kept_NK, task)
        strict_N[accepted_N] = np.mean(((predicted_NK - kept_NK) / scale.span) ** 2, axis=1)
    metrics["mse_norm_strict"] = float(strict_N.mean())
    return metrics


def error_metrics(predicted_NK: Matrix, target_NK: Matrix, task: ScoresTask) -> dict[str, float]:
    """The error metrics of accepted answers, overall and per key (`mse_norm/<key>`, ...).

    `r2` is the mean over the keys whose targets vary; it is left out where none does.

    Raises:
        MetricError: No rows, or shapes that differ.
    """
    scale = Scale(task.low, task.high)
    metrics = {
        "mse_raw": mse_raw(predicted_NK, target_NK),
        "mse_norm": mse_norm(predicted_NK, target_NK, scale),
        "mae_raw": mae_raw(predicted_NK, target_NK),
        "within_tolerance@5": within_tolerance(predicted_NK, target_NK, scale, 5),
    }
    r2_K = r2_per_key(predicted_NK, target_NK)
    if not np.isnan(r2_K).all():
        metrics["r2"] = float(np.nanmean(r2_K))
    for index, key in enumerate(task.keys):
        one, other = predicted_NK[:, index : index + 1], target_NK[:, index : index + 1]
        metrics |= {
            f"mse_raw/{key}": mse_raw(one, other),
            f"mse_norm/{key}": mse_norm(one, other, scale),
            f"mae_raw/{key}": mae_raw(one, other),
            f"within_tolerance@5/{key}": within_tolerance(one, other, scale, 5),
        }
        if not np.isnan(r2_K[index]):
            metrics[f"r2/{key}"] = float(r2_K[index])
    return metrics


def ratio(error: float, of: float) -> float | None:
    """One error in units of another; None where the other is 0, as the train mean's is on targets that all equal it."""
    return error / of if of else None


def latency_metrics(latencies_ms: Sequence[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile of single requests, in milliseconds; nothing for no measurements."""
    if not latencies_ms:
        return {}
    p50, p95, p99 = np.percentile(latencies_ms, [50, 95, 99])
    return {"latency_ms_p50": float(p50), "latency_ms_p95": float(p95), "latency_ms_p99": float(p99)}


class Rounded(NamedTuple):
    """Answers that keep to a coarser scale than the task's."""

    unit: float
    """What nearly all of them are multiples of, in task units."""
    share: float
    target_share: float
    """Of the targets that are such multiples."""


def flat_keys(predicted_NK: Matrix, target_NK: Matrix, task: ScoresTask) -> list[str]:
    """Keys whose accepted answers hardly vary between requests (the mean or the mode answered every time): their spread
    is below a fifth of the targets'. None for fewer than ten rows."""
    if len(predicted_NK) < _COLLAPSE_ROWS:
        return []
    flat_K = (predicted_NK.std(axis=0) < 0.2 * target_NK.std(axis=0)) & varies(target_NK)
    return [key for key, is_flat in zip(task.keys, flat_K, strict=True) if is_flat]


def rounded_answers(predicted_NK: Matrix, target_NK: Matrix, task: ScoresTask) -> Rounded | None:
    """Whether accepted answers are multiples of the task's round number far more often than the targets are; None where
    they are not, for fewer than ten rows, and on a scale that has no coarser one."""
    unit = round_unit(task)
    if unit is None or len(predicted_NK) < _COLLAPSE_ROWS:
        return None
    # In steps of the task, which are whole: a remainder of tenths is never exact.
    steps, whole = 10.0**task.decimals, round(unit * 10.0**task.decimals)
    share, target_share = (
        float(np.mean(np.mod(np.rint(values * steps), whole) == 0)) for values in (predicted_NK, target_NK)
    )
    return Rounded(unit, share, target_share) if share > max(0.5, 2 * target_share) else None


def round_unit(task: ScoresTask) -> float | None:
    """The power of ten that scores of a task are rounded to by who rounds them: the largest one that goes into the
    range four times. None where that is a step of the scale itself, so that every score is a multiple of it.

    Example:
        >>> round_unit(ScoresTask()), round_unit(ScoresTask(low=1, high=5, decimals=1))
        (10.0, 1.0)
        >>> round_unit(ScoresTask(low=0, high=5)) is None
        True
    """
    exponent = math.floor(math.log10(task.span / 4))
    return 10.0**exponent if exponent > -task.decimals else None


def collapse_warnings(predicted_NK: Matrix, target_NK: Matrix, task: ScoresTask) -> list[str]:
    """What looks wrong with a set of accepted greedy answers, in words; empty when nothing does (see `flat_keys` and
    `rounded_answers`)."""
    warnings = []
    if flat := flat_keys(predicted_NK, target_NK, task):
        warnings.append(f"greedy answers hardly vary between requests for {', '.join(flat)}: collapsed to one value")
    if rounded := rounded_answers(predicted_NK, target_NK, task):
        warnings.append(
            f"{rounded.share:.0%} of the greedy scores are multiples of {rounded.unit:g} "
            f"(targets: {rounded.target_share:.0%})"
        )
    return warnings


def renamed(name: str, read_out: str) -> str:
    """An error metric's name for another read-out than greedy.

    Example:
        >>> renamed("mse_norm/energy", "posterior_mean")
        'mse_norm_posterior_mean/energy'
    """
    metric, slash, key = name.partition("/")
    return f"{metric}_{read_out}{slash}{key}"


def _errors(predicted_NK: Matrix, target_NK: Matrix) -> Matrix:
    if predicted_NK.shape != target_NK.shape:
        raise MetricError(f"metrics: expected equal shapes; got {predicted_NK.shape} and {target_NK.shape}")
    if predicted_NK.size == 0:
        raise MetricError("metrics: expected at least one row; got none")
    return predicted_NK - target_NK
