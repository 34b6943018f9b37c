"""Ratios of errors in words: what a reader takes away from a report."""

import pytest

from ppe_lora.evaluation.intervals import Interval
from ppe_lora.report.run_words import change, change_between, error_figure


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(0.73, "27 % less error"), (1.31, "31 % more error"), (2.5, "150 % more error"), (1.002, "no less error")],
)
def test_a_ratio_in_words(ratio: float, words: str) -> None:
    assert change(ratio).en == words


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.67, 0.78, "22 to 33 % less"),
        (1.19, 1.46, "19 to 46 % more"),
        (0.95, 1.1, "5 % less to 10 % more"),
        (1.0, 1.0, "no more and no less"),
        (0.9, 1.0, "10 % less to 0 % more"),
    ],
)
def test_an_interval_in_words(low: float, high: float, words: str) -> None:
    """An interval that holds 1 must not read like a gain, and the smaller end comes first."""
    assert change_between(Interval((low + high) / 2, low, high)).en == words


def test_small_errors_keep_their_digits() -> None:
    """0.00653 and 0.00668 shown as 0.007 would be a tie."""
    assert [error_figure(value) for value in (0.00653, 0.00668, 0.1, 0.0)] == ["0.00653", "0.00668", "0.100", "0.00"]
