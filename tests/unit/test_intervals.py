"""Confidence intervals of means and of paired differences: they cover as often as they say, and claim nothing of
nothing."""

import warnings

import numpy as np
import pytest

from ppe_lora.errors import MetricError
from ppe_lora.evaluation.intervals import mean_interval, paired_errors

SIMULATIONS = 1000
ROWS = 200


@pytest.mark.slow
def test_intervals_cover_at_their_nominal_rate():
    """95 % intervals that hold the truth in 90 % of the cases sell chance as progress.

    Each simulation has 200 rows whose errors spread by 0.6 times their mean (in the demo it is 0.53); both sides share
    how hard a row is. The truth: ours 0.06, theirs 0.1.
    """
    covered = {"mean": 0, "difference": 0, "ratio": 0}
    for simulation in range(SIMULATIONS):
        rng = np.random.default_rng(simulation)
        hard_N = rng.gamma(6.0, 1 / 6.0, ROWS)
        ours_N, theirs_N = (mean * hard_N * rng.gamma(6.0, 1 / 6.0, ROWS) for mean in (0.06, 0.1))
        paired = paired_errors(ours_N, theirs_N)
        for name, interval, truth in (
            ("mean", mean_interval(ours_N), 0.06),
            ("difference", paired.difference, -0.04),
            ("ratio", paired.ratio, 0.6),
        ):
            covered[name] += interval.low <= truth <= interval.high
    assert {name: count / SIMULATIONS for name, count in covered.items()} == pytest.approx(
        dict.fromkeys(covered, 0.95), abs=0.02
    )


def test_identical_errors_are_neither_better_nor_worse():
    errors_N = np.random.default_rng(0).gamma(1.0, 0.1, 40)
    paired = paired_errors(errors_N, errors_N.copy())
    assert paired.difference == (0.0, 0.0, 0.0)
    assert paired.ratio == (1.0, 1.0, 1.0)
    assert not paired.surely_better
    assert not paired.surely_worse


def test_pairing_sees_a_small_difference_between_rows_of_very_different_difficulty():
    """Unpaired, the spread of the rows would hide it."""
    rng = np.random.default_rng(0)
    hard_N = rng.gamma(0.5, 0.2, 200)
    theirs_N = hard_N + rng.normal(0, 0.005, 200) ** 2
    paired = paired_errors(0.9 * theirs_N, theirs_N)
    assert paired.surely_better
    assert paired.ratio.value == pytest.approx(0.9)
    alone = mean_interval(0.9 * theirs_N)
    assert alone.low < theirs_N.mean() < alone.high


def test_difference_and_ratio_never_contradict_each_other():
    """Two pictures of one comparison, one sure and one not, would be a reason to trust neither."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        ours_N, theirs_N = rng.gamma(1.0, 0.1, 30), rng.gamma(1.0, 0.12, 30)
        paired = paired_errors(ours_N, theirs_N)
        assert paired.surely_better == (paired.ratio.high < 1)
        assert paired.surely_worse == (paired.ratio.low > 1)


def test_a_ratio_to_next_to_no_error_has_no_ends():
    """One row of 20 on which they are wrong: a third of the draws do not have it."""
    theirs_N = np.zeros(20)
    theirs_N[3] = 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paired = paired_errors(np.full(20, 0.02), theirs_N)
    assert paired.ratio.value == pytest.approx(4)
    assert np.isnan([paired.ratio.low, paired.ratio.high]).all()
    assert paired.difference.low < 0.015 < paired.difference.high


def test_what_has_no_interval_is_refused():
    with pytest.raises(MetricError, match="expected at least two rows; got 1"):
        mean_interval(np.array([0.1]))
    with pytest.raises(MetricError, match=r"expected errors of 2 rows; got \(3,\)"):
        paired_errors(np.array([0.1, 0.2]), np.array([0.1, 0.2, 0.3]))


def test_there_is_no_ratio_to_no_error():
    """Test targets that all equal the train mean: a report that divides by its error is a traceback."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        worse, equal = paired_errors(np.array([0.1, 0.2]), np.zeros(2)), paired_errors(np.zeros(2), np.zeros(2))
    assert (worse.ratio, equal.ratio) == (None, None)
    assert worse.surely_worse
    assert not equal.surely_worse
    assert not equal.surely_better
