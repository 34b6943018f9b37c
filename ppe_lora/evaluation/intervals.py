"""How sure a mean over rows is: percentile bootstrap intervals (scipy's), one row being the unit that is drawn.

Errors of two predictors on the same rows are compared in pairs, for what makes a row hard is hard for both. N rows.

The plain percentile interval is too narrow for few rows; the level asked of scipy is raised as far as Student's t is
wider than the normal distribution (the "expanded percentile" interval of Hesterberg, The American Statistician 2015).
"""

import warnings
from typing import Any, NamedTuple

import numpy as np

from ppe_lora.errors import MetricError
from ppe_lora.evaluation.metrics import Matrix

LEVEL = 0.95
_RESAMPLES = 1999
_BATCH = 4_000_000
"""Numbers held at once while resampling."""


class Interval(NamedTuple):
    """A figure and the ends of its confidence interval."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the width, for `value ± half`."""
        return (self.high - self.low) / 2


class Paired(NamedTuple):
    """Our error beside another predictor's on the same rows."""

    difference: Interval
    """Ours minus theirs, in the unit of the errors: below 0 we are better."""
    ratio: Interval | None
    """Ours over theirs: 0.7 is 30 % less error. It excludes 1 exactly where the difference excludes 0. Its ends are NaN
    where they are wrong on so few rows that some draws have no error of theirs; None where they are never wrong."""
    rows: int

    @property
    def surely_better(self) -> bool:
        """Whether the whole interval says so."""
        return self.difference.high < 0

    @property
    def surely_worse(self) -> bool:
        """Whether the whole interval says so."""
        return self.difference.low > 0


def mean_interval(values_N: Matrix, level: float = LEVEL) -> Interval:
    """The mean of N values with its interval.

    Raises:
        MetricError: Fewer than two values.
    """
    from scipy.stats import bootstrap  # slow to import

    _check(values_N)
    found = bootstrap((values_N,), np.mean, **_settings(len(values_N), level))
    return Interval(float(values_N.mean()), *map(float, found.confidence_interval))


def paired_errors(ours_N: Matrix, theirs_N: Matrix, level: float = LEVEL) -> Paired:
    """Compare the errors of two predictors on the same N rows.

    The same draws serve the difference and the ratio, so that the two never contradict each other.

    Raises:
        MetricError: Fewer than two rows, or another number on one side.
    """
    from scipy.stats import DegenerateDataWarning, bootstrap  # slow to import

    _check(ours_N)
    if ours_N.shape != theirs_N.shape:
        raise MetricError(f"intervals: expected errors of {len(ours_N)} rows; got {theirs_N.shape}")

    def both(ours: Matrix, theirs: Matrix, axis: int = -1) -> Matrix:
        one, other = np.asarray(ours.mean(axis)), np.asarray(theirs.mean(axis))
        return np.stack([one - other, np.divide(one, other, out=np.full_like(one, np.nan), where=other > 0)])

    settings = _settings(len(ours_N), level) | {"paired": True, "vectorized": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # of ratios without an end
        lows, highs = bootstrap((ours_N, theirs_N), both, **settings).confidence_interval
    ends = zip(both(ours_N, theirs_N).tolist(), lows.tolist(), highs.tolist(), strict=True)
    difference, ratio = (Interval(*end) for end in ends)
    return Paired(difference, ratio if theirs_N.any() else None, len(ours_N))


def expanded_level(rows: int, level: float = LEVEL) -> float:
    """The level to ask of a percentile bootstrap over this many rows, so that it covers `level`."""
    from scipy.stats import norm, t

    return float(1 - 2 * norm.cdf(-np.sqrt(rows / (rows - 1)) * t.ppf((1 + level) / 2, rows - 1)))


def _settings(rows: int, level: float) -> dict[str, Any]:
    return {
        "confidence_level": expanded_level(rows, level),
        "method": "percentile",
        "n_resamples": _RESAMPLES,
        "batch": max(1, _BATCH // rows),
        "rng": np.random.default_rng(0),
    }


def _check(values_N: Matrix) -> None:
    if len(values_N) < 2:
        raise MetricError(f"intervals: expected at least two rows; got {len(values_N)}")
