"""Where answers are wrong: errors by key, by slice of the rows and by the model's own doubt. N rows, K keys.

Errors are squared on the unit scale, as in mse_norm. A rejected answer counts as the worst admissible one, so that a
model cannot look good by saying nothing where it is difficult.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ppe_lora.corpus.rows import Row
from ppe_lora.evaluation.intervals import Interval, Paired, mean_interval, paired_errors
from ppe_lora.evaluation.metrics import Matrix, Scale, absolute_errors, varies
from ppe_lora.evaluation.paired import thirds
from ppe_lora.tasks.scores import ScoresTask

FIELDS = ("language", "style", "sampler", "length", "scenario")
SLICE_ROWS = 5
"""Rows of a slice from which it is shown."""
_SURE = 0.99
"""Level at which a slice is called worse than the rest: there are many slices."""
_MORE = 1.05
"""Error over the average from which a slice can be called worse: with many rows, trifles are sure, too."""
_LENGTHS = ("short", "medium", "long")


class KeyErrors(NamedTuple):
    """How one key is answered."""

    error: Interval
    """mse_norm."""
    against: dict[str, Paired]
    """Beside each baseline."""
    bias: Interval | None
    """Mean answer minus mean target, in task units; None for fewer than two accepted answers."""
    spread: float | None
    """Standard deviation of the answers over that of the targets: below 1 the answers keep to the middle. None where
    one of them cannot be told."""


class SliceErrors(NamedTuple):
    """The rows that have one value of a field."""

    field: str
    value: str
    rows: int
    error: Interval
    """mse_norm."""
    ratio: float
    """Error over that of the train mean on the same rows."""
    surely_worse: bool
    """Whether it has more error than the average row (by 5 %), and not only because it is harder: the 99 % interval of
    its ratio lies above the ratio of all other rows."""


def squared_errors(answer_NK: Matrix, target_NK: Matrix, task: ScoresTask) -> Matrix:
    """Squared errors on the unit scale, shape (N, K); NaN, a rejected answer, is as wrong as can be."""
    scale = Scale(task.low, task.high)
    return np.asarray((absolute_errors(answer_NK, target_NK, scale) / scale.span) ** 2)


def errors_by_key(
    answer_NK: Matrix, target_NK: Matrix, baselines: Mapping[str, Matrix], task: ScoresTask
) -> dict[str, KeyErrors]:
    """Every key's errors.

    Args:
        answer_NK: Answers in task units, NaN where rejected.
        target_NK: Targets.
        baselines: Answers of other predictors, by name.
        task: Names the keys, gives the range.

    Raises:
        MetricError: Fewer than two rows.
    """
    error_NK = squared_errors(answer_NK, target_NK, task)
    other_NK = {name: squared_errors(answers, target_NK, task) for name, answers in baselines.items()}
    accepted_N = ~np.isnan(answer_NK).any(axis=1)
    found = {}
    for k, key in enumerate(task.keys):
        own_N, true_N = answer_NK[accepted_N, k], target_NK[accepted_N, k]
        others = {name: of_NK[:, k] for name, of_NK in other_NK.items()}
        told = len(own_N) > 1 and bool(varies(true_N))
        found[key] = KeyErrors(
            mean_interval(error_NK[:, k]),
            {name: paired_errors(error_NK[:, k], other_N) for name, other_N in others.items()},
            mean_interval(own_N - true_N) if len(own_N) > 1 else None,
            float(own_N.std() / true_N.std()) if told else None,
        )
    return found


def errors_by_slice(rows: Sequence[Row], error_N: Matrix, train_mean_N: Matrix) -> list[SliceErrors]:
    """Slices by language, style, sampler, length and scenario, the worst of each field first.

    Length is that of the request among those of its language, in thirds. A field with one value has no slices, and
    neither has a value with fewer than `SLICE_ROWS` rows, or where the train mean is never wrong.

    Args:
        rows: The N rows.
        error_N: Their errors (mean over the keys).
        train_mean_N: The errors of the train mean.
    """
    found_thirds = thirds([len(row.request) for row in rows], [row.language for row in rows])
    members: dict[str, dict[str, list[int]]] = {field: {} for field in FIELDS}
    for number, (row, third) in enumerate(zip(rows, found_thirds, strict=True)):
        for field, values in _tags(row, _LENGTHS[third]).items():
            for value in dict.fromkeys(values):
                members[field].setdefault(value, []).append(number)
    slices = []
    for field, by_value in members.items():
        found = []
        for value in sorted(by_value):
            own = by_value[value]
            if len(by_value) > 1 and len(own) >= SLICE_ROWS and train_mean_N[own].any():
                inside_N = np.zeros(len(rows), dtype=bool)
                inside_N[own] = True
                found.append(_slice(field, value, inside_N, error_N, train_mean_N))
        slices += sorted(found, key=lambda one: -one.error.value)
    return slices


def coverage(low_NK: Matrix, high_NK: Matrix, target_NK: Matrix) -> Interval:
    """Share of targets inside their interval, with the interval of that share over rows.

    Raises:
        MetricError: Fewer than two rows.
    """
    return mean_interval(((low_NK <= target_NK) & (target_NK <= high_NK)).mean(axis=1))


class DoubtBin(NamedTuple):
    """Scores whose distributions are about equally wide."""

    said: float
    """Root mean square of the standard deviations, in task units: the error the model expects."""
    found: float
    """Root mean square of the errors of the means, in task units."""
    scores: int


def errors_by_doubt(sd_NK: Matrix, mean_NK: Matrix, target_NK: Matrix, most: int = 8) -> list[DoubtBin]:
    """Single scores in bins of equal size by the width of their distribution; fewer bins for few scores."""
    order = np.argsort(sd_NK, axis=None, kind="stable")
    sd_S, off_S = sd_NK.flatten()[order], (mean_NK - target_NK).flatten()[order]
    bins = max(1, min(most, len(order) // 25))
    parts = zip(np.array_split(sd_S, bins), np.array_split(off_S, bins), strict=True)
    return [DoubtBin(_root_mean_square(sd), _root_mean_square(off), len(sd)) for sd, off in parts]


def _root_mean_square(values: Matrix) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _slice(field: str, value: str, inside_N: np.ndarray, error_N: Matrix, train_mean_N: Matrix) -> SliceErrors:
    own_N, rest_N = error_N[inside_N], error_N[~inside_N]
    ratio = paired_errors(own_N, train_mean_N[inside_N], _SURE).ratio
    assert ratio is not None  # the train mean is wrong somewhere in a slice
    worse = own_N.mean() > _MORE * error_N.mean() and ratio.low * train_mean_N[~inside_N].mean() > rest_N.mean()
    return SliceErrors(field, value, len(own_N), mean_interval(own_N), ratio.value, bool(worse))


def _tags(row: Row, length: str) -> dict[str, tuple[str, ...]]:
    return {
        "language": (row.language,),
        "style": (row.style or "none",),
        "sampler": (row.sampler,),
        "length": (length,),
        "scenario": row.scenario or ("none",),
    }
