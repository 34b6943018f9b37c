"""Blind re-labelling: which rows are far off, and what the noise floor is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppe_lora.corpus.relabel import drop_far, far_threshold
from ppe_lora.corpus.rows import Row
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import Data, GenerateSource
from ppe_lora.recipe.teachers import MistralTeacher
from ppe_lora.tasks.scores import Answer, ScoresTask

TASK = ScoresTask(keys=("a", "b"))
DISTANCES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def row(number: int, a: float, b: float) -> Row:
    return Row(id=str(number), request="x", target={"a": a, "b": b}, language="en")


def test_far_rows_are_rejected_and_the_floor_is_that_of_the_others() -> None:
    """By hand: unit distances 0.1 0 | 0 0.2 | 0.2 0 | unread | 1 1; squared means .005 .02 .02 1; MAD .0075."""
    rows = [row(0, 50, 50), row(1, 10, 20), row(2, 30, 80), row(3, 0, 0), row(4, 0, 100)]
    readings = [Answer((60.0, 50.0)), Answer((10.0, 40.0)), Answer((10.0, 80.0)), None, Answer((100.0, 0.0))]
    filtered, floor = drop_far(rows, readings, TASK, 4.0, "m")
    assert filtered.kept == rows[:4]
    assert filtered.rejected == [(rows[4], "re-reading", 'read {"a":100,"b":0}, asked {"a":0,"b":100}')]
    assert (floor.model, floor.read, floor.unread) == ("m", 4, 1)
    assert floor.threshold == pytest.approx(0.02 + 4 * 0.0075)
    assert floor.mse_norm == pytest.approx(0.015)
    assert floor.per_key == pytest.approx({"a": (0.01 + 0.04) / 3, "b": 0.04 / 3})


def test_one_step_off_is_not_far_where_most_are_right() -> None:
    """One key of few steps: MAD is 0, and every row but the exact ones would be thrown away."""
    distance_N = np.array([0.0] * 12 + [0.0625] * 7 + [1.0])
    threshold = far_threshold(distance_N, 6.0)
    assert threshold == pytest.approx(6 * (7 * 0.0625 + 1.0) / 20)
    assert (distance_N > threshold).sum() == 1


@given(DISTANCES, st.floats(0.1, 20))
def test_at_most_half_of_the_rows_are_far(distances: list[float], k: float) -> None:
    """A threshold under the median would throw good data away; scaled distances must give the same rows."""
    distance_N = np.array(distances)
    threshold = far_threshold(distance_N, k)
    assert threshold >= np.median(distance_N)
    assert far_threshold(distance_N * 4, k) == pytest.approx(threshold * 4)


@given(st.lists(st.floats(0.001, 0.05), min_size=21, max_size=41), st.integers(1, 10))
def test_wrong_rows_do_not_hide_each_other(good: list[float], wrong: int) -> None:
    """A mean and a standard deviation are moved by what they should find; with these, the wrong rows would pass."""
    distance_N = np.array(good + [1.0] * wrong)
    assert far_threshold(distance_N, 6.0) < 0.05 + 6 * 0.05 < 1.0


def test_a_reader_without_any_reading_is_an_error() -> None:
    """A floor of nothing would be NaN, or worse 0: a perfect score."""
    with pytest.raises(DataError, match="re-reading: expected scores from m; got none in 2 answers"):
        drop_far([row(0, 1, 2), row(1, 3, 4)], [None, None], TASK, 6.0, "m")


def test_who_reads() -> None:
    """Reading at the writer's temperature adds noise to the floor; a phrase book cannot read at all."""
    hosted = MistralTeacher(kind="mistral", model="w", temperature=1.0)
    warm, cold = hosted.model_dump(), {"kind": "mistral", "model": "r"}
    data = {"name": "d", "source": GenerateSource(teacher=hosted)}
    assert Data(**data).reader is None
    assert Data(**data, filters={"relabel": {}}).reader == hosted.model_copy(update={"temperature": 0.0})
    assert Data(**data, filters={"relabel": {"teacher": warm}}).reader == hosted
    named = Data(name="d", filters={"relabel": {"teacher": cold}}).reader
    assert named is not None
    assert (named.model, named.temperature) == ("r", 0.0)
    with pytest.raises(ValueError, match="the row teacher is none"):
        Data(name="d", filters={"relabel": {}})
