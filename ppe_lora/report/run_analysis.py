"""What the files of a run say together, before any of it is put into words. N test rows, K keys."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from ppe_lora.corpus.rows import targets_matrix
from ppe_lora.evaluation.correct import posterior_means
from ppe_lora.evaluation.intervals import Interval, Paired, mean_interval, paired_errors
from ppe_lora.evaluation.metrics import Matrix
from ppe_lora.evaluation.row_errors import (
    DoubtBin,
    KeyErrors,
    SliceErrors,
    coverage,
    errors_by_doubt,
    errors_by_key,
    errors_by_slice,
    squared_errors,
)
from ppe_lora.recipe.schema import ReadOut
from ppe_lora.report.run_folder import RunFolder
from ppe_lora.tasks.scores import ScoresTask

WITHOUT_HEAD = "without_head"
"""The correction that engines serve where the run's own uses the head."""
_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


class Predictor(NamedTuple):
    """The error of one predictor on the test rows."""

    name: str
    """A baseline's name, a read-out, or `WITHOUT_HEAD`."""
    error: Interval
    """mse_norm."""
    against: Paired | None
    """The served answers beside it; None for the served answers themselves."""


class Doubt(NamedTuple):
    """What the model's distributions and intervals are worth; from the test rows."""

    low_NK: Matrix
    high_NK: Matrix
    """Ends of the 80 % intervals, in task units."""
    calibrated: bool
    """Whether they were widened or narrowed on validation rows (`calibration.json`)."""
    covered: Interval
    """Share of targets inside them."""
    by_key: dict[str, tuple[Interval, float]]
    """Key to the share covered, and the mean width in task units."""
    reliability: list[tuple[float, float]]
    """Wanted and found coverage of normal intervals from the model's own means and standard deviations."""
    bins: list[DoubtBin]


class Analysis(NamedTuple):
    """The served answers of a run, judged."""

    run: RunFolder
    read_out: ReadOut
    target_NK: Matrix
    answer_NK: Matrix
    """In task units; a row of NaN was rejected."""
    error_NK: Matrix
    """Squared, on the unit scale; a rejected answer as wrong as can be."""
    error: Interval
    """mse_norm of the served answers."""
    predictors: list[Predictor]
    """Baselines, then read-outs, the served one among them."""
    keys: dict[str, KeyErrors]
    slices: list[SliceErrors]
    weights: dict[str, Paired]
    """What is not served but comes from the same weights (greedy text, the posterior mean, `WITHOUT_HEAD`), each beside
    always answering the train mean."""
    doubt: Doubt | None
    """None where the model gives no distributions."""

    @property
    def rejected(self) -> int:
        """How many answers were rejected."""
        return int(np.isnan(self.answer_NK[:, 0]).sum())

    @property
    def against(self) -> dict[str, Paired]:
        """The served answers beside each baseline."""
        return {one.name: one.against for one in self.predictors if one.name in self.run.baselines and one.against}


def analyse(run: RunFolder) -> Analysis:
    """Judge a run's answers.

    Raises:
        MetricError: Fewer than two test rows.
    """
    task, read_out = run.recipe.task, run.recipe.evaluate.read_out
    target_NK = targets_matrix(run.rows, task)
    answer_NK = _answers(run, read_out)
    error_NK = squared_errors(answer_NK, target_NK, task)
    trivial_NK = squared_errors(run.baselines["train_mean"], target_NK, task)
    answers = _read_outs(run)
    shown = {name: run.baselines[name] for name in ("train_mean", "ridge")}
    return Analysis(
        run=run,
        read_out=read_out,
        target_NK=target_NK,
        answer_NK=answer_NK,
        error_NK=error_NK,
        error=mean_interval(error_NK.mean(axis=1)),
        predictors=_predictors(run.baselines | answers, read_out, error_NK, target_NK, task),
        keys=errors_by_key(answer_NK, target_NK, shown, task),
        slices=errors_by_slice(run.rows, error_NK.mean(axis=1), trivial_NK.mean(axis=1)),
        weights={
            name: paired_errors(squared_errors(answers[name], target_NK, task).mean(axis=1), trivial_NK.mean(axis=1))
            for name in ("greedy", "posterior_mean", WITHOUT_HEAD)
            if name in answers and name != read_out
        },
        doubt=_doubt(run, target_NK),
    )


def _answers(run: RunFolder, read_out: str) -> Matrix:
    """Answers of a read-out, (N, K), in task units; NaN where rejected."""
    keys = run.recipe.task.keys
    field = "parsed" if read_out == "greedy" else read_out
    silent = dict.fromkeys(keys, np.nan)
    return np.array([[(row[field] or silent)[key] for key in keys] for row in run.predictions], dtype=float)


def _read_outs(run: RunFolder) -> dict[str, Matrix]:
    """Answers of every read-out that the run has, and those that engines serve where they are others."""
    answers = {"greedy": _answers(run, "greedy")}
    if not _has_distributions(run):
        return answers
    names = ("posterior_mean", "posterior_median", "calibrated")
    answers |= {name: _answers(run, name) for name in names if name in run.predictions[0]}
    if run.engine_calibration is not None:
        task = run.recipe.task
        corrected_NK = run.engine_calibration.correct(posterior_means(run.predictions, task), task)
        answers[WITHOUT_HEAD] = np.vectorize(task.round, otypes=[float])(corrected_NK)
    return answers


def _predictors(
    answers: Mapping[str, Matrix], served: ReadOut, error_NK: Matrix, target_NK: Matrix, task: ScoresTask
) -> list[Predictor]:
    predictors = []
    for name, answer_NK in answers.items():
        other_N = squared_errors(answer_NK, target_NK, task).mean(axis=1)
        against = paired_errors(error_NK.mean(axis=1), other_N) if name != served else None
        predictors.append(Predictor(name, mean_interval(other_N), against))
    return predictors


def _has_distributions(run: RunFolder) -> bool:
    return "low" in run.predictions[0]


def _doubt(run: RunFolder, target_NK: Matrix) -> Doubt | None:
    if not _has_distributions(run):
        return None
    task = run.recipe.task
    mean_NK = posterior_means(run.predictions, task)
    sd_NK = _answers(run, "posterior_sd")

    def normal(level: float) -> tuple[Matrix, Matrix]:
        half_NK = norm.ppf((1 + level) / 2) * sd_NK
        return np.clip(mean_NK - half_NK, task.low, task.high), np.clip(mean_NK + half_NK, task.low, task.high)

    low_NK, high_NK = _answers(run, "low"), _answers(run, "high")
    by_key = {}
    for k, key in enumerate(task.keys):
        ends = low_NK[:, k : k + 1], high_NK[:, k : k + 1]
        by_key[key] = (coverage(*ends, target_NK[:, k : k + 1]), float((ends[1] - ends[0]).mean()))
    return Doubt(
        low_NK=low_NK,
        high_NK=high_NK,
        calibrated="coverage_calibrated@80" in run.metrics,
        covered=coverage(low_NK, high_NK, target_NK),
        by_key=by_key,
        reliability=[(level, _inside(*normal(level), target_NK)) for level in _LEVELS],
        bins=errors_by_doubt(sd_NK, mean_NK, target_NK),
    )


def _inside(low_NK: Matrix, high_NK: Matrix, target_NK: Matrix) -> float:
    return float(((low_NK <= target_NK) & (target_NK <= high_NK)).mean())
