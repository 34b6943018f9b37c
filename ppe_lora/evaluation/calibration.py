"""After training: a linear correction of the posterior means and the width of intervals, both from validation rows.

N rows, K keys, J inputs: the K posterior means and, where the student has a head (`ppe_lora/student/head.py`), the K
scores that it reads. The correction is chosen by cross-validation, and none is the default:

    none     the posterior mean as it is
    affine   per score, a + b * mean, least squares
    joint    ridge regression of each score on all inputs
    head     what the head reads
    blend    w * mean + (1 - w) * head, with one w between 0 and 1
    stack    v * mean + w * head + (1 - v - w) * training mean, v and w the same for all scores, least squares

Posterior means and the head's scores both keep towards the middle, as each should alone. Together they may go further:
a stack's weights need not add up to 1. Without a head it moves the posterior means only.

The interval of a score is mean +- width * standard deviation of its distribution (of the uncorrected one), with the
width that covered the wanted share of validation targets, all scores together: conformal prediction with scaled
residuals (Lei et al., 2018), of n the ceil(0.8 (n + 1))-th smallest. They are held out from the fit of the correction,
but not from its choice, and the scores of one row belong together: the coverage is what a test set shows, not a
guarantee.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np

from ppe_lora.artifacts import read_json
from ppe_lora.errors import ModelError
from ppe_lora.evaluation.metrics import Matrix, varies
from ppe_lora.tasks.scores import ScoresTask

COVERAGE = 0.8
_OF_COVERAGE = NormalDist().inv_cdf((1 + COVERAGE) / 2)
"""Standard deviations to either side of a normal distribution's mean that hold this share."""
FILE = "calibration.json"
WITHOUT_HEAD = "without_head"
"""Where a calibration that uses the head keeps the one that does not."""
_FOLDS = 5
LEAST_ROWS = 20
"""Validation rows from which a correction is fitted."""
_JOINT_ALPHA = 10.0
"""Of inputs divided by their common standard deviation. Leave-one-out error chooses nothing better (LOG.md)."""
_LEAST_SD = 0.005
"""Smallest standard deviation that is believed, as a share of the range."""

Kind = Literal["none", "affine", "joint", "head", "blend", "stack"]


class Calibration(NamedTuple):
    """A fitted correction and interval width."""

    kind: Kind
    weight_KJ: Matrix
    """Corrected score by input."""
    offset_K: Matrix
    width: float
    """Standard deviations to either side that cover `COVERAGE` of validation targets."""
    rows: int
    """Validation rows it was fitted on."""
    cv_mse_norm: dict[str, float]
    """Cross-validated mse_norm of each correction."""

    @property
    def uses_head(self) -> bool:
        """Whether what the head reads is among the inputs."""
        return bool(self.weight_KJ.shape[1] > self.weight_KJ.shape[0])

    def correct(self, mean_NK: Matrix, task: ScoresTask, head_NK: Matrix | None = None) -> Matrix:
        """Corrected scores, within the range, not rounded.

        Args:
            mean_NK: Posterior means.
            task: Gives the range.
            head_NK: The head's scores, where the correction was fitted with a head.
        """
        input_NJ = _inputs(mean_NK, head_NK if self.uses_head else None)
        return np.clip(input_NJ @ self.weight_KJ.T + self.offset_K, task.low, task.high)

    def interval(self, center_NK: Matrix, sd_NK: Matrix, task: ScoresTask) -> tuple[Matrix, Matrix]:
        """Lower and upper ends of the intervals around corrected scores, within the range.

        Args:
            center_NK: The corrected scores.
            sd_NK: Standard deviations of the uncorrected distributions.
            task: Gives the range.
        """
        half_NK = _OF_COVERAGE * self.deviation(sd_NK, task)
        return np.clip(center_NK - half_NK, task.low, task.high), np.clip(center_NK + half_NK, task.low, task.high)

    def deviation(self, sd_NK: Matrix, task: ScoresTask) -> Matrix:
        """Standard deviations of the corrected scores: those of normal distributions with the same intervals."""
        return self.width / _OF_COVERAGE * np.maximum(sd_NK, _LEAST_SD * task.span)

    def as_json(self, task: ScoresTask) -> dict[str, Any]:
        """What travels with the model."""
        return {
            "kind": self.kind,
            "keys": list(task.keys),
            "weight": self.weight_KJ.tolist(),
            "offset": self.offset_K.tolist(),
            "width": self.width,
            "coverage": COVERAGE,
            "rows": self.rows,
            "cv_mse_norm": self.cv_mse_norm,
        }


def read_calibration(path: Path, task: ScoresTask, *, with_head: bool = True) -> Calibration:
    """The calibration of a model, or the one of its posterior means alone, where nothing reads the head.

    Raises:
        ModelError: The file is of another task, or is no calibration.
    """
    try:
        stored = read_json(path)
        if not with_head:
            stored = stored.get(WITHOUT_HEAD, stored)
        found = Calibration(
            stored["kind"],
            np.array(stored["weight"], dtype=float),
            np.array(stored["offset"], dtype=float),
            float(stored["width"]),
            stored["rows"],
            stored["cv_mse_norm"],
        )
        keys = list(stored["keys"])
        if not (np.isfinite(found.weight_KJ).all() and np.isfinite(found.offset_K).all() and 0 <= found.width < np.inf):
            raise ValueError("weights, offsets or a width that are no numbers")
        if found.kind not in found.cv_mse_norm:
            raise ValueError(f"no error of {found.kind}")
        if stored["coverage"] != COVERAGE:
            raise ValueError(f"intervals of {stored['coverage']}, not of {COVERAGE}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: expected a calibration; got {error!r}; run `ppe-lora evaluate RECIPE`") from error
    if (
        keys != list(task.keys)
        or found.weight_KJ.shape not in [(len(keys), len(keys)), (len(keys), 2 * len(keys))]
        or found.offset_K.shape != (len(keys),)
    ):
        raise ModelError(f"{path}: expected a calibration of {', '.join(task.keys)}; got one of {', '.join(keys)}")
    if found.uses_head and not with_head:
        raise ModelError(
            f"{path}: expected a correction for engines, which do not read the head; got none; "
            "run `ppe-lora evaluate RECIPE`, and `ppe-lora export RECIPE`"
        )
    return found


def read_calibrations(folder: Path, task: ScoresTask) -> tuple[Calibration | None, Calibration | None]:
    """The calibration of a run or an export, and the one for engines where it uses the head, which they do not read;
    None for what there is not.

    Raises:
        ModelError: See `read_calibration`.
    """
    path = folder / FILE
    if not path.is_file():
        return None, None
    own = read_calibration(path, task)
    return own, read_calibration(path, task, with_head=False) if own.uses_head else None


def fit_calibration(
    mean_NK: Matrix,
    sd_NK: Matrix,
    target_NK: Matrix,
    task: ScoresTask,
    train_mean_K: Matrix,
    head_NK: Matrix | None = None,
) -> Calibration:
    """Fit on validation rows.

    A correction is kept only if its cross-validated squared error is below that of none by more than the standard
    error of their difference over rows.

    Args:
        mean_NK: Posterior means, in task units.
        sd_NK: Their standard deviations.
        target_NK: The targets.
        task: Gives the range.
        train_mean_K: Mean target of the training rows.
        head_NK: What the head reads from the same rows, fitted on others.

    Raises:
        ValueError: Fewer than `LEAST_ROWS` rows.
    """
    if len(mean_NK) < LEAST_ROWS:
        raise ValueError(f"calibration: expected at least {LEAST_ROWS} validation rows; got {len(mean_NK)}")
    input_NJ = _inputs(mean_NK, head_NK)
    stack: Fit = partial(_stack, train_mean_K=train_mean_K)
    fits: dict[Kind, Fit] = {"none": _identity, "affine": _affine, "joint": _joint, "stack": stack}
    if head_NK is not None:
        fits |= {"head": _head, "blend": _blend}
    held_out = {kind: _out_of_fold(fit, input_NJ, target_NK, task) for kind, fit in fits.items()}
    error_N = {kind: (((read - target_NK) / task.span) ** 2).mean(axis=1) for kind, read in held_out.items()}
    kind: Kind = "none"
    for other in fits:
        gain_N = error_N["none"] - error_N[other]
        sure = gain_N.mean() > gain_N.std(ddof=1) / np.sqrt(len(gain_N))
        if sure and error_N[other].mean() < error_N[kind].mean():
            kind = other
    weight_KJ, offset_K = fits[kind](input_NJ, target_NK)
    weight_KJ = weight_KJ[:, : target_NK.shape[1]] if kind in ("none", "affine") else weight_KJ
    residual_NK = np.abs(held_out[kind] - target_NK) / np.maximum(sd_NK, _LEAST_SD * task.span)
    rank = min(residual_NK.size, int(np.ceil((residual_NK.size + 1) * COVERAGE)))
    width = float(np.sort(residual_NK, axis=None)[rank - 1])
    cv = {str(name): float(error.mean()) for name, error in error_N.items()}
    return Calibration(kind, weight_KJ, offset_K, width, len(mean_NK), cv)


Fit = Callable[[Matrix, Matrix], tuple[Matrix, Matrix]]
"""From inputs (N, J) and targets (N, K) to weights (K, J) and offsets (K)."""


def _inputs(mean_NK: Matrix, head_NK: Matrix | None) -> Matrix:
    return mean_NK if head_NK is None else np.concatenate([mean_NK, head_NK], axis=1)


def _out_of_fold(fit: Fit, input_NJ: Matrix, target_NK: Matrix, task: ScoresTask) -> Matrix:
    fold_N = np.random.default_rng(0).permutation(len(input_NJ)) % _FOLDS
    read_NK = np.empty_like(target_NK)
    for fold in range(_FOLDS):
        weight_KJ, offset_K = fit(input_NJ[fold_N != fold], target_NK[fold_N != fold])
        read_NK[fold_N == fold] = input_NJ[fold_N == fold] @ weight_KJ.T + offset_K
    return np.clip(read_NK, task.low, task.high)


def _identity(input_NJ: Matrix, target_NK: Matrix) -> tuple[Matrix, Matrix]:
    keys = target_NK.shape[1]
    return np.eye(keys, input_NJ.shape[1]), np.zeros(keys)


def _affine(input_NJ: Matrix, target_NK: Matrix) -> tuple[Matrix, Matrix]:
    mean_NK = input_NJ[:, : target_NK.shape[1]]
    center_K, target_K = mean_NK.mean(axis=0), target_NK.mean(axis=0)
    spread_K = ((mean_NK - center_K) ** 2).sum(axis=0)
    shared_K = ((mean_NK - center_K) * (target_NK - target_K)).sum(axis=0)
    slope_K = np.divide(shared_K, spread_K, out=np.zeros_like(spread_K), where=varies(mean_NK))
    return slope_K[:, None] * np.eye(len(slope_K), input_NJ.shape[1]), target_K - slope_K * center_K


def _joint(input_NJ: Matrix, target_NK: Matrix) -> tuple[Matrix, Matrix]:
    from sklearn.linear_model import Ridge  # slow to import

    spread = float(input_NJ.std()) or 1.0
    ridge = Ridge(alpha=_JOINT_ALPHA).fit(input_NJ / spread, target_NK)
    keys = target_NK.shape[1]
    return np.asarray(ridge.coef_).reshape(keys, -1) / spread, np.asarray(ridge.intercept_).reshape(keys)


def _head(input_NJ: Matrix, target_NK: Matrix) -> tuple[Matrix, Matrix]:
    keys = target_NK.shape[1]
    return np.eye(keys, 2 * keys, k=keys), np.zeros(keys)


def _stack(input_NJ: Matrix, target_NK: Matrix, train_mean_K: Matrix) -> tuple[Matrix, Matrix]:
    keys = target_NK.shape[1]
    readings = [input_NJ[:, start : start + keys] for start in range(0, input_NJ.shape[1], keys)]
    apart_MR = np.stack([(reading_NK - train_mean_K).ravel() for reading_NK in readings], axis=1)
    weight_R = np.linalg.lstsq(apart_MR, (target_NK - train_mean_K).ravel())[0]
    return np.kron(weight_R, np.eye(keys)), (1.0 - weight_R.sum()) * train_mean_K


def _blend(input_NJ: Matrix, target_NK: Matrix) -> tuple[Matrix, Matrix]:
    keys = target_NK.shape[1]
    mean_NK, head_NK = input_NJ[:, :keys], input_NJ[:, keys:]
    apart = float(((mean_NK - head_NK) ** 2).sum())
    share = float(((mean_NK - head_NK) * (target_NK - head_NK)).sum()) / apart if apart else 0.0
    share = min(max(share, 0.0), 1.0)
    return share * np.eye(keys, 2 * keys) + (1 - share) * np.eye(keys, 2 * keys, k=keys), np.zeros(keys)
