"""The correction after training, on simulated predictions whose fault is known."""

import numpy as np
import pytest

from ppe_lora.artifacts import write_json
from ppe_lora.errors import ModelError
from ppe_lora.evaluation.calibration import _affine, _blend, _stack, fit_calibration, read_calibration
from ppe_lora.tasks.scores import ScoresTask

TASK = ScoresTask(keys=("a", "b", "c"))
TRAIN_MEAN = np.array([40.0, 50.0, 60.0])


def simulate(rows: int, slope: float, offset: float, noise: float, seed: int):
    """True posterior means with targets `noise` around them, reported with a slope and an offset; and that noise."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(10, 90, (rows, 3))
    target = truth + rng.normal(0, noise, truth.shape)
    return slope * truth + offset, np.full_like(truth, noise), target


def test_a_shrunken_prediction_is_stretched_back():
    """Half the slope and an offset: the correction must find both, and help on new rows."""
    found = fit_calibration(*simulate(200, 0.5, 20, 4, seed=1), TASK, TRAIN_MEAN)
    assert found.kind in ("affine", "joint", "stack")
    mean, _, target = simulate(500, 0.5, 20, 4, seed=2)
    before, after = ((values - target) ** 2 for values in (mean, found.correct(mean, TASK)))
    assert after.mean() < 0.7 * before.mean()


def test_what_needs_no_correction_gets_none():
    """Unbiased means: any fit on 60 rows is noise, and keeping it would hurt."""
    kinds = [fit_calibration(*simulate(60, 1.0, 0, 8, seed=seed), TASK, TRAIN_MEAN).kind for seed in range(20)]
    assert kinds.count("none") >= 16


def test_intervals_cover_their_share_of_new_rows():
    """Deviations claimed twice too small or too large: the width makes up for it, 80 % within sampling error."""
    for claimed in (0.5, 2.0):
        mean, sd, target = simulate(300, 1.0, 0, 8, seed=3)
        found = fit_calibration(mean, claimed * sd, target, TASK, TRAIN_MEAN)
        mean, sd, target = simulate(2000, 1.0, 0, 8, seed=4)
        low, high = found.interval(found.correct(mean, TASK), claimed * sd, TASK)
        assert ((low <= target) & (target <= high)).mean() == pytest.approx(0.8, abs=0.04)


def test_a_head_is_used_as_far_as_it_helps():
    """Two readings with independent errors: the better one alone, or both where neither is much worse."""
    rng = np.random.default_rng(5)
    target = rng.uniform(10, 90, (400, 3))
    sd = np.full_like(target, 10)
    for own, heads, kinds in (
        (30, 5, ("head", "joint", "blend", "stack")),
        (8, 8, ("blend", "joint", "stack")),
        (5, 40, ("none", "affine", "joint", "stack")),
    ):
        mean, head = target + rng.normal(0, own, target.shape), target + rng.normal(0, heads, target.shape)
        found = fit_calibration(mean[:200], sd[:200], target[:200], TASK, TRAIN_MEAN, head[:200])
        assert found.kind in kinds
        answers = found.correct(mean[200:], TASK, head[200:])
        best = min(np.square(values[200:] - target[200:]).mean() for values in (mean, head))
        assert np.square(answers - target[200:]).mean() < 1.05 * best


def test_the_blend_is_the_best_share():
    """w of w * mean + (1 - w) * head by hand: errors of -1 and +3 cancel at w = 3/4."""
    target = np.linspace(20, 80, 30)[:, None].repeat(3, axis=1)
    weight, offset = _blend(np.concatenate([target - 1, target + 3], axis=1), target)
    np.testing.assert_allclose(weight, np.concatenate([0.75 * np.eye(3), 0.25 * np.eye(3)], axis=1))
    assert not offset.any()


def test_the_stack_goes_as_far_as_its_readings_fall_short():
    """By hand: a mean that goes half of the way from the training mean has to go twice as far."""
    target = np.linspace(20, 80, 30)[:, None].repeat(3, axis=1)
    weight, offset = _stack((target + TRAIN_MEAN) / 2, target, TRAIN_MEAN)
    np.testing.assert_allclose(weight, 2 * np.eye(3), atol=1e-12)
    np.testing.assert_allclose(offset, -TRAIN_MEAN)


def test_two_readings_that_keep_to_the_middle_go_further_together():
    """Each is the best guess from its own noisy view, hence near the middle; the best guess from both is not
    between them."""
    rng = np.random.default_rng(7)
    target = 50 + rng.normal(0, 15, (400, 3))
    mean, head = (50 + (target - 50 + rng.normal(0, 15, target.shape)) / 2 for _ in range(2))
    middle, sd = np.full(3, 50.0), np.full((60, 3), 10.0)
    found = fit_calibration(mean[:60], sd, target[:60], TASK, middle, head[:60])
    assert found.kind == "stack"
    assert found.weight_KJ.sum() / 3 == pytest.approx(4 / 3, abs=0.15)
    error, between = (
        np.square(values - target[60:]).mean()
        for values in (found.correct(mean[60:], TASK, head[60:]), (mean[60:] + head[60:]) / 2)
    )
    assert error < 0.95 * between  # 75 against 84.4 with endless rows


def test_one_score_and_constant_means_are_possible():
    """A collapsed student answers the same to everything: the mean of the targets is then the best correction."""
    task = ScoresTask(keys=("a",))
    target = np.linspace(60, 80, 40)[:, None]
    found = fit_calibration(np.full((40, 1), 50.0), np.ones((40, 1)), target, task, np.array([70.0]))
    assert found.correct(np.array([[50.0]]), task)[0, 0] == pytest.approx(70, abs=1)
    with pytest.raises(ValueError, match="at least 20"):
        fit_calibration(target[:3], target[:3], target[:3], task, np.array([70.0]))


def test_means_that_are_equal_but_for_rounding_have_no_slope():
    """The mean of twenty times 0.1 is not 0.1: a slope through what is left of it is any number."""
    rng = np.random.default_rng(7)
    for value in (0.1, -4.9, 0.7):
        mean_NK = np.full((20, 1), value)
        assert mean_NK.std() > 0
        weight, offset = _affine(mean_NK, target := rng.uniform(-5, 5, (20, 1)))
        assert weight[0, 0] == 0
        assert offset[0] == pytest.approx(target.mean())


def test_the_width_is_the_conformal_rank():
    """Of 20 residuals the ceil(0.8 x 21)-th smallest, the 17th: one more would cover 86 %."""
    task = ScoresTask(keys=("a",), high=1000)
    target = np.arange(50.0, 1000.0, 50.0).repeat(2)[:20, None]
    off = np.arange(1.0, 21.0)[:, None] * np.where(np.arange(20) % 2, 1, -1)[:, None]
    found = fit_calibration(target + off, np.full((20, 1), 10.0), target, task, np.array([500.0]))
    assert found.kind == "none"
    assert found.width == pytest.approx(1.7)


@pytest.mark.parametrize("broken", [[], {}, {"keys": None}, {"coverage": 0.9}, {"width": "wide"}])
def test_a_broken_calibration_is_said_to_be_one(tmp_path, broken):
    """A traceback in front of a server's first answer, or intervals of another share than they are called."""
    stored = fit_calibration(*simulate(40, 1.0, 0, 8, seed=1), TASK, TRAIN_MEAN).as_json(TASK)
    write_json(tmp_path / "calibration.json", stored | broken if broken else broken)
    for with_head in (True, False):
        with pytest.raises(ModelError, match="expected a calibration; got"):
            read_calibration(tmp_path / "calibration.json", TASK, with_head=with_head)


def test_what_travels_with_the_model_corrects_as_what_was_fitted(tmp_path):
    """A server that reads weights transposed, or another width, serves other numbers than were measured."""
    mean, sd, target = simulate(200, 0.5, 20, 4, seed=1)
    found = fit_calibration(mean, sd, target, TASK, TRAIN_MEAN)
    write_json(tmp_path / "calibration.json", found.as_json(TASK))
    read = read_calibration(tmp_path / "calibration.json", TASK)
    assert np.array_equal(read.correct(mean, TASK), found.correct(mean, TASK))
    for one, other in zip(read.interval(mean, sd, TASK), found.interval(mean, sd, TASK), strict=True):
        assert np.array_equal(one, other)


def test_the_deviation_of_a_corrected_score_is_that_of_its_interval():
    """By hand: 1.2816 standard deviations to either side hold 80 % of a normal distribution. A head's answer with the
    deviation of the digits would say another thing than its own interval."""
    mean, sd, target = simulate(200, 1.0, 0, 8, seed=6)
    found = fit_calibration(mean, sd / 3, target, TASK, TRAIN_MEAN)
    deviation = found.deviation(sd[:1] / 3, TASK)
    low, high = found.interval(np.full((1, 3), 50.0), sd[:1] / 3, TASK)
    np.testing.assert_allclose(high - low, 2 * 1.2816 * deviation, rtol=1e-4)
    np.testing.assert_allclose(deviation, 8, rtol=0.1)
