"""From a decoded row to the numbers that are answered, one way for evaluation and serving. K keys, V values."""

from typing import NamedTuple

import numpy as np
import torch

from ppe_lora.evaluation.calibration import COVERAGE, Calibration
from ppe_lora.evaluation.metrics import Matrix
from ppe_lora.recipe.schema import ReadOut
from ppe_lora.student.decode import Decoded
from ppe_lora.student.posterior import deviation, mean, quantile
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.student.trie import ScoreTrie
from ppe_lora.tasks.scores import Answer, ScoresTask


class Posterior(NamedTuple):
    """A row's scores as their distributions have them, in task units and key order."""

    mean_K: list[float]
    """Not rounded to an answer: corrections are fitted on these, and on a coarse scale rounding costs some accuracy."""
    median_K: list[float]
    """Values of the task, nothing to round."""
    sd_K: list[float]


class Reading(NamedTuple):
    """A served answer, in task units and key order."""

    values_K: list[float]
    sd_K: list[float]
    """Of the distributions; of the corrected scores, where there is a calibration."""
    low_K: list[float]
    high_K: list[float]


def posterior_of(log_p_KV: torch.Tensor, task: ScoresTask, trie: ScoreTrie) -> Posterior:
    """Mean, median and standard deviation of each score of a row."""
    return Posterior(
        plain(mean(log_p_KV, trie.values), task),
        [task.round(float(value)) for value in quantile(log_p_KV, trie.values, 0.5)],
        plain(deviation(log_p_KV, trie.values), task),
    )


def interval_of(log_p_KV: torch.Tensor, task: ScoresTask, trie: ScoreTrie) -> tuple[list[float], list[float]]:
    """Lower and upper ends of the central 80 % of each score's distribution, in task units."""
    low_K, high_K = (plain(quantile(log_p_KV, trie.values, share), task) for share in _SHARES)
    return low_K, high_K


def read_answer(
    one: Decoded,
    task: ScoresTask,
    tokenizer: StudentTokenizer,
    trie: ScoreTrie,
    read_out: ReadOut,
    calibration: Calibration | None,
) -> Reading:
    """The answer to a row decoded by force, and how sure the model is of it.

    `calibrated` is the posterior mean corrected by the calibration, as `mse_norm_calibrated` measured it. The interval
    is the calibration's, which covered 80 % of validation targets; without one it is the central 80 % of the
    distribution.
    """
    assert one.log_p_KV is not None
    means, medians, deviations = posterior_of(one.log_p_KV, task, trie)
    if calibration is None:
        corrected_K, ends = np.array(means), interval_of(one.log_p_KV, task, trie)
    else:
        corrected_K = corrected_means(one, means, task, calibration)
        low_NK, high_NK = calibration.interval(corrected_K[None], np.array([deviations]), task)
        ends = (plain(low_NK[0], task), plain(high_NK[0], task))
        deviations = plain(calibration.deviation(np.array(deviations), task), task)
    if read_out == "greedy":
        outcome = task.parse(tokenizer.decode(one.ids))
        assert isinstance(outcome, Answer)  # forced
        values = list(outcome.values)
    else:
        values = {"posterior_mean": means, "posterior_median": medians, "calibrated": list(corrected_K)}[read_out]
    return Reading([task.round(float(value)) for value in values], deviations, *ends)


def corrected_means(one: Decoded, mean_K: list[float], task: ScoresTask, calibration: Calibration) -> Matrix:
    """Corrected scores of a decoded row, not rounded to an answer, (K,)."""
    head_NK = None if one.head_K is None else np.array([plain(one.head_K, task)])
    return calibration.correct(np.array([mean_K]), task, head_NK)[0]


_SHARES = ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2)


def plain(values_K: Matrix | torch.Tensor, task: ScoresTask) -> list[float]:
    """Numbers that are no answers, as they are stored and told."""
    return [task.fine(float(value)) for value in values_K]
