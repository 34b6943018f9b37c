"""Blind re-labelling: texts that a reader takes for something else than was asked are rejected.

Distances are mean squared differences over the keys on the unit scale (the task's range mapped to 0-1), as in
`mse_norm`. Letters: N rows, K keys.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppe_lora.corpus.filters import Filtered, Rejection
from ppe_lora.corpus.rows import Row, targets_matrix
from ppe_lora.errors import DataError
from ppe_lora.tasks.scores import Answer, ScoresTask

Floats = NDArray[np.float64]


class NoiseFloor(NamedTuple):
    """How far the reader is from what was asked, over the kept rows it has read: section `relabel` of a manifest.

    It is what a student may reach that learns from these texts as the reader understands them, no strict bound. Far
    rows are out of it, so it is somewhat lower than over all rows read.
    """

    model: str
    """Who read."""
    mse_norm: float
    per_key: dict[str, float]
    """The same for each key."""
    threshold: float
    """Largest distance of a kept row."""
    read: int
    """Rows with a reading, the rejected ones included."""
    unread: int
    """Rows that are kept because the model's answer was no reading."""


def far_threshold(distance_N: Floats, k: float) -> float:
    """The distance above which a row is far off: median + k * MAD, from the distances of all rows.

    MAD is the median absolute deviation from the median: up to half the rows may be arbitrarily wrong without moving
    the threshold past the others. Where it is 0, since more than half of the distances are equal (one key with few
    steps), the mean absolute deviation stands in, or the next smallest step would count as far.

    Raises:
        DataError: No distances.

    Example:
        >>> far_threshold(np.array([1.0, 2.0, 3.0, 4.0, 100.0]), k=2.0)  # median 3, deviations 2 1 0 1 97
        5.0
    """
    if not len(distance_N):
        raise DataError("re-reading: expected at least one distance; got none")
    median = float(np.median(distance_N))
    deviation_N = np.abs(distance_N - median)
    return median + k * float(np.median(deviation_N) or np.mean(deviation_N))


def drop_far(
    rows: Sequence[Row], readings: Sequence[Answer | None], task: ScoresTask, k: float, model: str
) -> tuple[Filtered, NoiseFloor]:
    """Reject rows whose reading is far from their target (rule `re-reading`); rows without a reading are kept.

    Args:
        rows: Generated rows.
        readings: What was read from each, in the same order.
        task: Key order and range.
        k: As for `far_threshold`.
        model: Who read.

    Raises:
        DataError: No row has a reading.
    """
    places = [i for i, reading in enumerate(readings) if reading is not None]
    if not places:
        raise DataError(
            f"re-reading: expected scores from {model}; got none in {len(rows):,} answers (data/raw/ has them); "
            "name a more capable model in data.filters.relabel.teacher, or set data.filters.relabel to null"
        )
    read_NK = np.array([reading.values for reading in readings if reading is not None])
    asked_NK = targets_matrix([rows[i] for i in places], task)
    squared_NK = ((read_NK - asked_NK) / task.span) ** 2
    distance_N = squared_NK.mean(axis=1)
    threshold = far_threshold(distance_N, k)
    near_N = distance_N <= threshold
    rejected = {
        place: Rejection(rows[place], "re-reading", f"read {_scores(read_K, task)}, asked {_scores(asked_K, task)}")
        for place, read_K, asked_K, near in zip(places, read_NK, asked_NK, near_N, strict=True)
        if not near
    }
    per_key = dict(zip(task.keys, squared_NK[near_N].mean(axis=0).tolist(), strict=True))
    floor = NoiseFloor(
        model, float(squared_NK[near_N].mean()), per_key, threshold, len(places), len(rows) - len(places)
    )
    kept = [row for i, row in enumerate(rows) if i not in rejected]
    return Filtered(kept, list(rejected.values())), floor


def _scores(values_K: Floats, task: ScoresTask) -> str:
    return task.render(dict(zip(task.keys, map(task.round, values_K.tolist()), strict=True)))
