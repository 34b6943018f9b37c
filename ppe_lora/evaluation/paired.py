"""Is the second better than the first, by how much, and is that sure? Two evaluations of the same rows.

N rows, K keys, M statistics. Every metric here is a mean over rows, so that its difference is a mean of paired
differences: what a row is hard for, it is hard for on both sides, and only what is left over counts as noise.

A rejected answer counts as the worst admissible one: per key the end of the range that is farther from the target, as
in `mse_norm_strict`. Leaving such rows out would let a model win by not answering what is hard.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppe_lora.errors import MetricError
from ppe_lora.evaluation.intervals import LEVEL, expanded_level
from ppe_lora.evaluation.metrics import Matrix, Scale, absolute_errors, varies
from ppe_lora.tasks.scores import ScoresTask

_RESAMPLES = 4999
_HELD = 1_000_000
"""Drawn rows held in memory at a time while resampling."""
_ROUNDING = 100 * np.finfo(np.float64).eps
"""Relative difference from which two means are not the same but for rounding."""
_TIE = 1e-12
_THIRDS = ("shortest third", "middle third", "longest third")

Column = NDArray[np.float64]


class Difference(NamedTuple):
    """Two means over the same rows, and what is known of their difference."""

    first: float
    second: float
    difference: float
    """Second minus first."""
    low: float
    """Lower end of the 95 % interval of the difference."""
    high: float
    p: float
    """Share of the coin flips, each exchanging the two sides of about half of the rows, that make the means differ at
    least as much: a permutation test, two-sided."""

    @property
    def is_shown(self) -> bool:
        """Whether the rows show that there is a difference: the interval excludes zero, and p is below 0.05."""
        return (self.low > 0 or self.high < 0) and self.p < 1 - LEVEL


class Tally(NamedTuple):
    """Rows on which the second has the smaller error, the same, the larger."""

    wins: int
    ties: int
    losses: int


def row_scores(predicted_NK: Matrix, target_NK: Matrix, task: ScoresTask) -> dict[str, Column]:
    """Per metric, overall and per key (`mse_norm/<key>`), one number per row, whose mean is the metric.

    The row's part of r2 is 1 - its squared error over the variance of the targets of these rows; keys whose targets
    do not vary have none.

    Args:
        predicted_NK: Answers in task units; rows of NaN are rejected answers.
        target_NK: Targets, same order.
        task: Keys and range.

    Raises:
        MetricError: No rows, or shapes that differ.
    """
    if predicted_NK.shape != target_NK.shape or not predicted_NK.size:
        raise MetricError(f"comparison: expected equal shapes with rows; got {predicted_NK.shape}, {target_NK.shape}")
    error_NK = absolute_errors(predicted_NK, target_NK, Scale(task.low, task.high))
    unit_NK = error_NK / task.span
    variance_K = target_NK.var(axis=0)
    varies_K = varies(target_NK)
    by_metric = {
        "mse_norm": unit_NK**2,
        "mae_raw": error_NK,
        "within_tolerance@5": (unit_NK <= 0.05 + 1e-9).astype(float),
        "r2": 1 - error_NK**2 / np.where(varies_K, variance_K, np.nan),
    }
    if not varies_K.any():
        del by_metric["r2"]
    scores = {name: np.nanmean(score_NK, axis=1) for name, score_NK in by_metric.items()}
    for index, key in enumerate(task.keys):
        scores |= {f"{name}/{key}": score_NK[:, index] for name, score_NK in by_metric.items()}
    return {name: column for name, column in scores.items() if not np.isnan(column).any()}


def differences(first_NM: Matrix, second_NM: Matrix, resamples: int = _RESAMPLES) -> list[Difference]:
    """Compare M row scores of two sides.

    The interval is scipy's percentile bootstrap over rows, at the level that makes up for the bootstrap's too small
    spread in small samples (Hesterberg 2015, "expanded percentile interval"): without it 50 rows cover 93 to 94 %.
    BCa covered less on squared errors. The p-value is that of scipy's paired permutation test, exact where there are
    no more exchanges of sides than `resamples`. The same draws serve all statistics.

    Args:
        first_NM: One row per row of data, one column per statistic.
        second_NM: The same rows, in the same order.
        resamples: Of each kind.

    Raises:
        MetricError: Fewer than two rows, or shapes that differ.
    """
    if first_NM.shape != second_NM.shape or len(first_NM) < 2:
        raise MetricError(f"comparison: expected two or more rows on both sides; got {first_NM.shape}, "
                          f"{second_NM.shape}")  # fmt: skip
    change_NM = second_NM - first_NM
    low_M, high_M = _interval(change_NM, resamples)
    columns = (first_NM.mean(axis=0), second_NM.mean(axis=0), change_NM.mean(axis=0), low_M, high_M)
    p_M = _p_values(change_NM, resamples)
    return [Difference(*map(float, one)) for one in zip(*columns, p_M, strict=True)]


def _interval(change_NM: Matrix, resamples: int) -> tuple[Column, Column]:
    from scipy.stats import bootstrap  # half a second to import

    rows = len(change_NM)

    # Resampled means as one matrix product: how often each row was drawn, times the columns.
    def drawn_means(row_BN: NDArray[np.int64], axis: int) -> Matrix:
        offset_B1 = rows * np.arange(len(row_BN))[:, None]
        count_BN = np.bincount((row_BN + offset_B1).ravel(), minlength=row_BN.size).reshape(row_BN.shape)
        return np.asarray((count_BN @ change_NM / rows).T)

    found = bootstrap(
        (np.arange(rows),), drawn_means, vectorized=True, n_resamples=resamples, batch=max(1, _HELD // rows),
        confidence_level=expanded_level(rows), method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return found.low, found.high


def _p_values(change_NM: Matrix, resamples: int) -> Column:
    """The share of the exchanges of sides whose means differ at least as much, twice that of the rarer direction.
    scipy's paired permutation test makes the same draws, but loops over the rows in Python: quadratic in them."""
    rows = len(change_NM)
    observed_M = np.ones(rows) @ change_NM / rows
    near_M = _ROUNDING * np.abs(observed_M)
    below_M, above_M, seen = np.zeros(len(observed_M)), np.zeros(len(observed_M)), 0
    for sign_BN in _signs(rows, resamples):
        mean_BM = sign_BN @ change_NM / rows
        below_M += (mean_BM <= observed_M + near_M).sum(axis=0)
        above_M += (mean_BM >= observed_M - near_M).sum(axis=0)
        seen += len(sign_BN)
    itself = 0 if seen == 2**rows else 1  # among the draws of all exchanges the rows as they are occur once
    return np.minimum(1.0, 2 * (np.minimum(below_M, above_M) + itself) / (seen + itself))


def _signs(rows: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Exchanging the sides of a row is changing the sign of its differences: all patterns of signs, or that many draws
    of them, in batches (B, N)."""
    if 2**rows <= resamples:
        yield np.array(list(product((1, -1), repeat=rows)))
        return
    rng, batch = np.random.default_rng(1), max(1, _HELD // rows)
    for start in range(0, resamples, batch):
        sides_BN2 = np.tile([1, -1], (min(batch, resamples - start), rows, 1))
        yield rng.permuted(sides_BN2, axis=-1)[..., 0]


def adjusted(found: Sequence[Difference]) -> list[Difference]:
    """The same differences with p-values for their number (Benjamini and Hochberg 1995, by scipy).

    Of ten pairs of equally good runs, one pair or more has a p below 0.05 in about a quarter of all sweeps. Adjusted,
    where no pair differs, it is in one sweep of twenty that anything is claimed.
    """
    from scipy.stats import false_discovery_control

    p_values = false_discovery_control([one.p for one in found]) if found else ()
    return [one._replace(p=float(p)) for one, p in zip(found, p_values, strict=True)]


def compare_tables(tables: Sequence[tuple[dict[str, Column], dict[str, Column]]]) -> list[dict[str, Difference]]:
    """`differences` of every metric that both sides of a table have, by name. All tables are of the same rows, so one
    set of draws serves them.

    Raises:
        MetricError: Fewer than two rows, or sides of different length.
    """
    names = [[name for name in first if name in second] for first, second in tables]
    shared = list(zip(names, tables, strict=True))
    first_NM, second_NM = (
        np.stack([sides[at][name] for own, sides in shared for name in own], axis=1) for at in (0, 1)
    )
    found = iter(differences(first_NM, second_NM))
    return [{name: next(found) for name in own} for own in names]


def tally(first_N: Column, second_N: Column) -> Tally:
    """Count the rows by which side has the smaller error; errors that differ by rounding only are ties."""
    change_N = second_N - first_N
    return Tally(int((change_N < -_TIE).sum()), int((np.abs(change_N) <= _TIE).sum()), int((change_N > _TIE).sum()))


def length_thirds(lengths: Sequence[int], languages: Sequence[str]) -> list[str]:
    """`thirds` in words."""
    return [_THIRDS[third] for third in thirds(lengths, languages)]


def thirds(lengths: Sequence[int], languages: Sequence[str]) -> list[int]:
    """For each row, in which third of its own language's lengths it is, 0 the shortest: a Japanese request says as much
    in fewer characters. Equal lengths share a third."""
    length_N, language_N = np.array(lengths), np.array(languages)
    third_N = np.zeros(len(length_N), dtype=int)
    for language in np.unique(language_N):
        own_N = language_N == language
        third_N[own_N] = np.searchsorted(np.quantile(length_N[own_N], [1 / 3, 2 / 3]), length_N[own_N])
    return [int(third) for third in third_N]
