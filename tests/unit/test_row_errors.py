"""Errors by key, by slice and by doubt: hand-computed, and with planted weaknesses."""

import numpy as np
import pytest

from ppe_lora.corpus.rows import Row
from ppe_lora.evaluation.metrics import error_metrics
from ppe_lora.evaluation.paired import row_scores
from ppe_lora.evaluation.row_errors import (
    SLICE_ROWS,
    coverage,
    errors_by_doubt,
    errors_by_key,
    errors_by_slice,
    squared_errors,
)
from ppe_lora.tasks.scores import ScoresTask

AB = ScoresTask(keys=("a", "b"))
NAN = float("nan")


def make_row(index: int, **fields: object) -> Row:
    shown = {"request": f"request {index}", "language": "en", "target": {"a": 1, "b": 2}} | fields
    return Row.model_validate({"id": str(index), **shown}, strict=False)


def test_a_rejected_answer_is_as_wrong_as_can_be():
    """Otherwise a model that says nothing where it is difficult looks best."""
    answer_NK = np.array([[20.0, 50.0], [NAN, NAN]])
    target_NK = np.array([[10.0, 50.0], [30.0, 100.0]])
    assert squared_errors(answer_NK, target_NK, AB) == pytest.approx(np.array([[0.01, 0.0], [0.49, 1.0]]))


def test_keys_by_hand():
    answer_NK = np.array([[10.0, 60.0], [30.0, 40.0], [50.0, 60.0], [NAN, NAN]])
    target_NK = np.array([[0.0, 50.0], [20.0, 50.0], [40.0, 50.0], [0.0, 50.0]])
    found = errors_by_key(answer_NK, target_NK, {"middle": np.full((4, 2), 70.0)}, AB)
    assert found["a"].bias is not None
    assert found["a"].bias == (10.0, 10.0, 10.0)
    assert found["a"].spread == 1.0
    assert found["b"].spread is None  # targets that do not vary
    assert found["a"].error.value == pytest.approx((3 * 0.01 + 1.0) / 4)
    assert found["b"].against["middle"].ratio.value == pytest.approx((3 * 0.01 + 0.25) / (4 * 0.04))


@pytest.mark.parametrize(("decimals", "always"), [(0, 42.0), (1, -4.9)])
def test_a_key_that_never_varies_has_no_baseline_to_beat(decimals, always):
    """The train mean is never wrong there: a ratio to no error was an error of the report, or a figure of 27 digits."""
    task = ScoresTask(keys=("a", "b"), low=-50, high=50, decimals=decimals)
    rng = np.random.default_rng(0)
    target_NK = np.stack([rng.uniform(-50, 50, 41).round(decimals), np.full(41, always)], axis=1)
    answer_NK = (target_NK + rng.normal(0, 3, target_NK.shape)).round(decimals)
    mean_NK = np.stack([np.zeros(41), np.full(41, always)], axis=1)
    found = errors_by_key(answer_NK, target_NK, {"train_mean": mean_NK}, task)
    assert found["a"].against["train_mean"].ratio is not None
    assert found["b"].against["train_mean"].ratio is None
    assert found["b"].spread is None
    assert found["b"].error.value > 0
    assert "r2/b" not in row_scores(answer_NK, target_NK, task)
    assert "r2/b" not in error_metrics(answer_NK, target_NK, task)


def test_a_slice_is_worse_only_if_it_is_read_less_well_than_it_is_hard():
    """Rows far from the mean have more error with any model; naming them as its weakness sends people astray."""
    rng = np.random.default_rng(0)
    styles = ["short", "polite"] * 100
    samplers = ["edge"] * 100 + ["uniform"] * 100
    rows = [
        make_row(n, style=style, sampler=sampler)
        for n, (style, sampler) in enumerate(zip(styles, samplers, strict=True))
    ]
    hard_N = np.where(np.array(samplers) == "edge", 0.2, 0.05) * rng.gamma(9.0, 1 / 9.0, 200)
    error_N = hard_N * np.where(np.array(styles) == "short", 0.8, 0.5)
    found = {(one.field, one.value): one for one in errors_by_slice(rows, error_N, hard_N)}
    assert found["style", "short"].surely_worse
    assert found["style", "short"].ratio == pytest.approx(0.8)
    assert not found["style", "polite"].surely_worse
    edge = found["sampler", "edge"]
    assert edge.error.value > 3 * found["sampler", "uniform"].error.value
    assert not edge.surely_worse
    # requests of one length have no thirds; a field with one value has no slices
    assert {field for field, _ in found} == {"style", "sampler", "length"}
    assert sum(one.rows for one in found.values() if one.field == "style") == 200


def test_nothing_is_worse_where_all_is_chance():
    """Dozens of slices of pure noise: a mark on several of them would be a false alarm machine."""
    rng = np.random.default_rng(1)
    rows = [make_row(n, scenario=tuple(f"tag{tag}" for tag in range(30) if rng.random() < 0.3)) for n in range(150)]
    slices = errors_by_slice(rows, rng.gamma(3.0, 0.01, 150), rng.gamma(3.0, 0.02, 150))
    assert len([one for one in slices if one.field == "scenario"]) >= 30
    assert sum(one.surely_worse for one in slices) <= 1


def test_length_is_told_within_a_language_and_small_slices_are_left_out():
    """Japanese says in 20 characters what English says in 60: thirds over all rows would be languages."""
    rows = [make_row(n, language="ja", request="あ" * (5 + n)) for n in range(30)]
    rows += [make_row(30 + n, request="a" * (50 + n)) for n in range(30)]
    rows += [make_row(60, scenario=("rare",))]
    slices = errors_by_slice(rows, np.ones(61), np.ones(61))
    by_length = {one.value: one.rows for one in slices if one.field == "length"}
    assert by_length == {"short": 21, "medium": 20, "long": 20}
    assert SLICE_ROWS == 5
    assert "rare" not in {one.value for one in slices}


def test_coverage_and_doubt_by_hand():
    low_NK, high_NK = np.array([[0.0, 40.0], [20.0, 0.0]]), np.array([[10.0, 60.0], [30.0, 5.0]])
    assert coverage(low_NK, high_NK, np.array([[10.0, 70.0], [25.0, 5.0]])).value == 0.75
    sd_NK = np.array([[1.0] * 25 + [9.0] * 25]).T
    off_NK = np.array([[2.0] * 25 + [3.0] * 25]).T
    bins = errors_by_doubt(sd_NK, off_NK, np.zeros((50, 1)))
    assert [tuple(one) for one in bins] == [(1.0, 2.0, 25), (9.0, 3.0, 25)]
