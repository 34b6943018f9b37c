"""Paired comparisons: intervals that cover, uniform p-values without a difference, nothing claimed of equals."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import bootstrap, kstest, permutation_test

from ppe_lora.errors import MetricError
from ppe_lora.evaluation import paired
from ppe_lora.evaluation.intervals import expanded_level
from ppe_lora.evaluation.metrics import Scale, error_metrics, worst_case_mse_norm
from ppe_lora.evaluation.paired import adjusted, compare_tables, differences, length_thirds, row_scores, tally
from ppe_lora.tasks.scores import ScoresTask

AB = ScoresTask(keys=("a", "b"))
SIMULATIONS = 1000


def paired_squared_errors(rows: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared errors of two models that find the same rows hard, for 1,000 test sets: skewed, and correlated."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 0.2, (rows, SIMULATIONS))
    first, second = ((shared + rng.normal(0, own, shared.shape)) ** 2 for own in (0.1, spread))
    return first, second


@pytest.mark.parametrize("rows", [50, 200])
@pytest.mark.parametrize("spread", [0.1, 0.15])
def test_intervals_cover_at_their_nominal_rate(rows, spread):
    """A 95 % interval that holds the truth in 90 of 100 test sets makes one sweep in ten report a false winner."""
    found = differences(*paired_squared_errors(rows, spread, seed=rows), resamples=999)
    truth = spread**2 - 0.1**2
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert covered == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("rows", [44, 200])
def test_p_values_are_uniform_without_a_difference(rows):
    """Else p below 0.05 would not happen in 5 of 100 comparisons of equally good models, but more often."""
    found = differences(*paired_squared_errors(rows, 0.1, seed=7), resamples=999)
    p = np.array([one.p for one in found])
    assert kstest(p, "uniform").pvalue > 0.01
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.02)
    assert np.mean([one.is_shown for one in found]) == pytest.approx(0.05, abs=0.02)


def test_a_sweep_of_equal_runs_seldom_claims_anything():
    """Ten pairs of five equally good runs: unadjusted, every fourth leaderboard would name a false winner."""
    rng = np.random.default_rng(0)
    first, second = map(list, zip(*combinations(range(5), 2), strict=True))
    claims = {"plain": 0, "adjusted": 0}
    for _ in range(200):
        errors = (rng.normal(0, 0.2, (40, 1)) + rng.normal(0, 0.1, (40, 5))) ** 2
        found = differences(errors[:, first], errors[:, second], resamples=499)
        claims["plain"] += any(one.is_shown for one in found)
        claims["adjusted"] += any(one.is_shown for one in adjusted(found))
    assert claims["plain"] > 30
    assert claims["adjusted"] <= 16
    assert adjusted([]) == []


def test_a_real_difference_is_found():
    """A test that never says anything would pass the tests above it."""
    found = differences(*paired_squared_errors(200, 0.25, seed=3), resamples=999)
    assert np.mean([one.is_shown and one.low > 0 for one in found]) > 0.95


def test_differences_are_those_of_scipy():
    """Twenty times faster must not mean other figures: the same draws, so the same intervals and p-values. The columns
    have ties, a side without a difference, and a constant one."""
    rng = np.random.default_rng(5)
    first = np.round(rng.gamma(1.0, 1.0, (150, 6)), 2)
    second = np.round(first + rng.normal(0, 0.3, first.shape), 2)
    second[:, 0], second[:, 1] = first[:, 0], first[:, 1] + 0.25
    change = second - first
    interval = bootstrap(
        (change,), np.mean, axis=0, n_resamples=999, confidence_level=expanded_level(150), method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    p_values = permutation_test(
        (np.ones(150),), lambda sign, axis: np.moveaxis(sign, axis, -1) @ change / 150, permutation_type="samples",
        vectorized=True, n_resamples=999, rng=np.random.default_rng(1),
    ).pvalue  # fmt: skip
    found = differences(first, second, resamples=999)
    np.testing.assert_allclose([one.low for one in found], interval.low, atol=1e-15)
    np.testing.assert_allclose([one.high for one in found], interval.high, atol=1e-15)
    assert [one.p for one in found] == p_values.tolist()


def test_one_set_of_draws_serves_all_tables(monkeypatch):
    """Five tables of one comparison drew the same 5,000 rows 4,999 times each, five times over."""
    calls = []
    monkeypatch.setattr(paired, "differences", lambda *sides: calls.append(sides) or differences(*sides))
    one, other = {"x": np.array([1.0, 2.0, 4.0])}, {"x": np.array([1.5, 2.0, 3.0]), "y": np.zeros(3)}
    found = paired.compare_tables([(one, other), (other, other)])
    assert len(calls) == 1
    assert [list(table) for table in found] == [["x"], ["x", "y"]]
    assert found[0]["x"] == differences(one["x"][:, None], other["x"][:, None])[0]


def test_nothing_is_claimed_of_identical_runs():
    """The bootstrap of equal numbers is degenerate: its interval must not come out as NaN or exclude zero."""
    scores = np.random.default_rng(0).random((30, 3))
    for one in differences(scores, scores):
        assert (one.difference, one.low, one.high, one.p) == (0.0, 0.0, 0.0, 1.0)
        assert not one.is_shown
    assert tally(scores[:, 0], scores[:, 0]) == (0, 30, 0)


def test_p_value_by_hand():
    """Three rows worse by 1, 2, 3: of the 8 sign patterns only +++ and --- have a mean of 2 or more: p = 2/8."""
    (found,) = differences(np.zeros((3, 1)), np.array([[1.0], [2.0], [3.0]]))
    assert (found.first, found.second, found.difference, found.p) == (0.0, 2.0, 2.0, 0.25)
    assert found.low >= 1
    assert not found.is_shown, "three rows show nothing, even when the bootstrap's interval excludes zero"


def test_row_scores_average_to_the_metrics():
    """Two definitions of one metric would let summary.md and the comparison of the same run disagree."""
    rng = np.random.default_rng(0)
    predicted, target = (rng.integers(0, 101, (40, 2)).astype(float) for _ in range(2))
    metrics = error_metrics(predicted, target, AB)
    scores = row_scores(predicted, target, AB)
    assert set(scores) == {name for name in metrics if not name.startswith("mse_raw")}
    for name, score_N in scores.items():
        assert score_N.mean() == pytest.approx(metrics[name]), name


def test_a_rejected_answer_counts_as_the_worst_admissible_one():
    """A model that answers only what is easy must not beat one that answers everything."""
    target = np.array([[20.0, 50.0], [90.0, 0.0]])
    scores = row_scores(np.full((2, 2), np.nan), target, AB)
    np.testing.assert_allclose(scores["mse_norm"], worst_case_mse_norm(target, Scale(0, 100)))
    np.testing.assert_allclose(scores["mae_raw/a"], [80, 90])
    assert scores["within_tolerance@5"].sum() == 0


def test_targets_that_do_not_vary_have_no_r2():
    scores = row_scores(np.array([[1.0, 5.0], [2.0, 6.0]]), np.array([[7.0, 5.0], [7.0, 9.0]]), AB)
    assert "r2/a" not in scores
    np.testing.assert_allclose(scores["r2"], scores["r2/b"])
    constant = row_scores(np.array([[1.0, 5.0]]), np.array([[7.0, 5.0]]), AB)
    assert not [name for name in constant if name.startswith("r2")]


def test_metrics_of_one_side_only_are_left_out():
    first, second = {"x": np.array([1.0, 2.0]), "y": np.array([1.0, 2.0])}, {"x": np.array([1.0, 2.5])}
    (found,) = compare_tables([(first, second)])
    assert set(found) == {"x"}


def test_tally_by_hand():
    assert tally(np.array([0.2, 0.2, 0.2, 0.1]), np.array([0.1, 0.2, 0.3, 0.3])) == (1, 1, 2)


@pytest.mark.parametrize("shapes", [((1, 2), (1, 2)), ((3, 2), (2, 2)), ((0, 2), (0, 2))])
def test_too_few_rows_or_other_rows_are_an_error(shapes):
    with pytest.raises(MetricError, match="expected two or more rows on both sides"):
        differences(*(np.zeros(shape) for shape in shapes))


def test_thirds_are_of_a_language_each():
    """Japanese needs fewer characters: over both languages, `short` would only mean Japanese."""
    lengths, languages = [10, 20, 30, 100, 200, 300], ["ja"] * 3 + ["en"] * 3
    assert length_thirds(lengths, languages) == ["shortest third", "middle third", "longest third"] * 2
    assert length_thirds([5, 5], ["en", "en"]) == ["shortest third"] * 2
