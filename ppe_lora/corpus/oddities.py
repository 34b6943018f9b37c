"""Rows whose words say something else than their numbers, found by a simple reader that learns from the other rows.

The reader is a ridge regression on character n-grams, so it works for any language without word boundaries. Every row
is read by a reader that has not seen it. Letters: N rows, K keys.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ppe_lora.corpus.ngrams import read_out_of_fold
from ppe_lora.corpus.rows import Row, targets_matrix
from ppe_lora.tasks.scores import ScoresTask

ODDITY_ROWS = 50
"""With fewer rows the reader learns nothing, so nothing can look odd to it."""
CONTRADICTION = 0.03
"""Score from which words and numbers contradict each other: a choice, made on scripted rows with some targets exchanged
(LOG.md)."""


class Oddities(NamedTuple):
    """What the reader made of every row, in the order of the rows."""

    read_NK: np.ndarray
    """The scores as read from the text alone, in task units, within the range."""
    average_K: np.ndarray
    """The mean target: what one would answer without reading, in task units."""
    score_N: np.ndarray
    """How odd each row is: by how much the reading is further from the target than the plain average is, as squared
    distance on the unit scale, mean over keys. Above 0 the words mislead; from `CONTRADICTION` on they contradict."""
    explained_K: np.ndarray
    """Share of each key's variance that the words explain to the reader, at most 1; NaN for a key that never varies."""


def find_oddities(rows: Sequence[Row], task: ScoresTask) -> Oddities | None:
    """Read every row's text and compare with its target.

    The plain squared error would not do as the score: it is largest for extreme targets that the text just does not
    mention. What the average explains better than the words do is a contradiction.

    Args:
        rows: Rows of all splits and languages together.
        task: Names the keys and their range.

    Returns:
        The comparison, or None for fewer than `ODDITY_ROWS` rows.
    """
    if len(rows) < ODDITY_ROWS:
        return None
    target_NK = (np.array(targets_matrix(rows, task), dtype=float) - task.low) / task.span
    average_K = target_NK.mean(axis=0)
    read_NK = np.clip(read_out_of_fold([row.request for row in rows], target_NK), 0.0, 1.0)
    read_error_NK = (read_NK - target_NK) ** 2
    plain_error_NK = (average_K - target_NK) ** 2
    plain_K = plain_error_NK.sum(axis=0)
    explained_K = np.full(len(task.keys), np.nan)
    np.divide(read_error_NK.sum(axis=0), plain_K, out=explained_K, where=np.ptp(target_NK, axis=0) > 0)
    score_N = (read_error_NK - plain_error_NK).mean(axis=1)
    units_NK, units_K = (task.low + task.span * values for values in (read_NK, average_K))
    return Oddities(units_NK, units_K, score_N, 1 - explained_K)
