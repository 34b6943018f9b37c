"""Metrics against values computed by hand."""

import math
from typing import Any

import numpy as np
import pytest

from ppe_lora.errors import MetricError, SelectionError
from ppe_lora.evaluation.baselines import constant_mse_norm, train_mean_mse_norm
from ppe_lora.evaluation.metrics import (
    Scale,
    collapse_warnings,
    latency_metrics,
    mae_raw,
    mse_norm,
    mse_raw,
    r2_per_key,
    round_unit,
    rounded_answers,
    score,
    within_tolerance,
)
from ppe_lora.evaluation.selection import held_back, select_epoch
from ppe_lora.tasks.scores import ScoresTask

AB = ScoresTask(keys=("a", "b"))
UNIT = Scale(0, 100)
PREDICTED = np.array([[10.0, 20.0], [30.0, 40.0]])
TARGET = np.array([[20.0, 20.0], [30.0, 60.0]])


def test_errors_by_hand():
    """Errors are 10, 0, 0, 20: squares sum to 500 over four scores."""
    assert mse_raw(PREDICTED, TARGET) == 125.0
    assert mse_norm(PREDICTED, TARGET, UNIT) == 0.0125
    assert mae_raw(PREDICTED, TARGET) == 7.5
    assert within_tolerance(PREDICTED, TARGET, UNIT, 10) == 0.75


def test_norm_uses_the_range_not_the_maximum():
    """A range of -100 to 100 is 200 wide: being off by 100 is a half, not one."""
    assert mse_norm(np.array([[100.0]]), np.array([[0.0]]), Scale(-100, 100)) == 0.25


def test_r2_by_hand_and_undefined_for_constant_targets():
    """Key a: residual 100, total 50 -> -1. A constant key has no r2, not a perfect or infinite one."""
    np.testing.assert_allclose(r2_per_key(PREDICTED, TARGET), [-1.0, 1 - 400 / 800])
    assert np.isnan(r2_per_key(np.array([[1.0], [2.0]]), np.array([[5.0], [5.0]]))).all()


@pytest.mark.parametrize("metric", [mse_raw, mae_raw, r2_per_key])
def test_an_empty_mean_is_an_error_and_not_a_perfect_score(metric):
    with pytest.raises(MetricError, match="expected at least one row; got none"):
        metric(np.empty((0, 2)), np.empty((0, 2)))


def test_shapes_must_match():
    """NumPy would broadcast one row against many and report a number."""
    with pytest.raises(MetricError, match=r"expected equal shapes; got \(1, 2\) and \(2, 2\)"):
        mse_raw(PREDICTED[:1], TARGET)


def test_rejected_answers_lower_the_rates_and_cost_the_worst_error_in_strict():
    """Silence cannot win: the rejected row with target (0, 50) counts as (1 + 0.25) / 2 = 0.625."""
    outcomes = [AB.parse('{"a":10,"b":20}'), AB.parse("no"), AB.parse('{"a":1}')]
    metrics = score(outcomes, np.array([[20.0, 20.0], [0.0, 50.0], [100.0, 0.0]]), AB)
    assert metrics["json_valid_rate"] == pytest.approx(2 / 3)
    assert metrics["schema_valid_rate"] == pytest.approx(1 / 3)
    assert metrics["mse_norm"] == pytest.approx(0.005)
    assert metrics["mse_norm/a"] == pytest.approx(0.01)
    assert metrics["mse_norm_strict"] == pytest.approx((0.005 + 0.625 + 1.0) / 3)


def test_no_accepted_answer_leaves_the_error_out():
    """An mse_norm of 0.0 over no answers would select a model that answers nothing."""
    metrics = score([AB.parse("no")], np.array([[0.0, 0.0]]), AB)
    assert "mse_norm" not in metrics
    assert metrics["mse_norm_strict"] == 1.0


def test_trivial_predictors_by_hand():
    """Train mean (20, 40) against (20, 20) and (30, 60): squares 0, 400, 100, 400."""
    assert train_mean_mse_norm(np.array([[10.0, 40.0], [30.0, 40.0]]), TARGET, AB) == pytest.approx(0.0225)
    assert constant_mse_norm(TARGET, AB) == pytest.approx((900 + 900 + 400 + 100) / 4 / 1e4)


def test_latency_quantiles():
    assert latency_metrics([]) == {}
    assert latency_metrics([10.0, 20.0, 30.0]) == {
        "latency_ms_p50": 20.0,
        "latency_ms_p95": pytest.approx(29.0),
        "latency_ms_p99": pytest.approx(29.8),
    }


def test_collapse_is_noticed():
    rng = np.random.default_rng(0)
    target_NK = rng.integers(0, 101, (50, 2)).astype(float)
    constant_NK = np.tile([[47.0, 53.0]], (50, 1))
    assert collapse_warnings(constant_NK, target_NK, AB) == [
        "greedy answers hardly vary between requests for a, b: collapsed to one value"
    ]
    tens = np.mean(target_NK % 10 == 0)
    assert collapse_warnings(np.round(target_NK, -1), target_NK, AB) == [
        f"100% of the greedy scores are multiples of 10 (targets: {tens:.0%})"
    ]
    assert collapse_warnings(target_NK, target_NK, AB) == []


@pytest.mark.parametrize(
    ("low", "high", "decimals", "unit"),
    [
        (0, 100, 0, 10), (0, 1000, 0, 100), (-50, 50, 0, 10), (0, 40, 0, 10), (1, 5, 1, 1), (-5, 5, 1, 1),
        (0, 5, 0, None), (1, 5, 0, None), (0, 20, 0, None), (0, 1, 1, None),
    ],
)  # fmt: skip
def test_round_scores_are_those_of_the_range(low: int, high: int, decimals: Any, unit: float | None) -> None:
    """On a scale from 0 to 5 the multiples of ten are the zeros, and "69 % multiples of ten" a warning about nothing;
    on one from 1 to 5 with a decimal, whole numbers are what a rounding model answers."""
    task = ScoresTask(keys=("a",), low=low, high=high, decimals=decimals)
    assert round_unit(task) == unit
    rng = np.random.default_rng(0)
    target_NK = np.round(rng.uniform(low, high, (200, 1)), decimals)
    zeros_NK = np.where(rng.random((200, 1)) < 0.69, low, target_NK)
    warned = [
        rounded_answers(answer_NK, target_NK, task)
        for answer_NK in (target_NK, np.round(target_NK / (unit or 1)) * (unit or 1))
    ]
    assert warned[0] is None
    assert (warned[1] and warned[1].unit) == unit
    if unit is None:
        assert rounded_answers(zeros_NK, target_NK, task) is None


def test_targets_that_never_vary_are_no_collapse():
    """Equal fractions have a spread of rounding errors, a fifth of which answers that never vary are below."""
    always = ScoresTask(keys=("a",), low=0, high=1, decimals=1)
    for rows in range(10, 80):
        assert collapse_warnings(np.full((rows, 1), 0.5), np.full((rows, 1), 0.6), always) == []


def _epoch(error: float, json_rate: float = 1.0, schema_rate: float = 1.0) -> dict[str, float]:
    return {"mse_norm": error, "json_valid_rate": json_rate, "schema_valid_rate": schema_rate, "valid_loss": 9 - error}


def test_epochs_without_the_metric_are_not_blamed_on_the_format():
    """Valid answers and an error that is no number: the advice was about the format gate, which they pass."""
    with pytest.raises(SelectionError) as error:
        select_epoch({1: _epoch(math.nan), 2: _epoch(0.1, json_rate=0.5)}, 0.99, advice="Go on.")
    assert str(error.value) == "selection: no epoch that passes the format gate of 0.99 has a mse_norm. Go on."


def test_selection_takes_the_smallest_decoded_error_among_the_valid():
    """Never the token loss, and never an epoch whose few valid answers happen to be good."""
    history = {1: _epoch(0.05), 2: _epoch(0.01, schema_rate=0.9), 3: _epoch(0.04), 4: _epoch(0.04)}
    assert select_epoch(history, 0.99) == 3
    assert select_epoch({1: _epoch(math.nan), 2: _epoch(0.05)}, 0.99) == 2


def test_a_better_epoch_that_the_gate_keeps_out_is_named():
    """One odd text of 56 can cost half of the accuracy; served answers are forced, and nobody would know."""
    history = {
        1: _epoch(0.19) | {"mse_norm_posterior_mean": 0.0743},
        2: _epoch(0.08, schema_rate=55 / 56) | {"mse_norm_posterior_mean": 0.0457},
    }
    assert held_back(history, 0.99, "calibrated") == (
        "epoch 2 has mse_norm_posterior_mean 0.0457, epoch 1 0.0743, but 0.982 of its greedy texts are valid and "
        "evaluate.gate is 0.99; only greedy text can be invalid when served, so a lower gate may be better"
    )
    assert held_back(history, 0.99, "greedy").endswith("evaluate.gate is 0.99")
    assert held_back(history, 0.98, "calibrated") is None


def test_selection_without_a_passing_epoch_names_the_nearest():
    history = {1: _epoch(0.05, json_rate=0.5), 2: _epoch(0.06, schema_rate=0.8)}
    with pytest.raises(SelectionError) as error:
        select_epoch(history, 0.99)
    assert str(error.value) == (
        "selection: no epoch passes the format gate of 0.99; the nearest is epoch 2 with json_valid_rate 1.000 and "
        "schema_valid_rate 0.800. Train longer or raise train.learning_rate; evaluate.gate says what is accepted."
    )
