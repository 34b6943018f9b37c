"""What predictors without a language model get: two that do not read the request, and one that reads n-grams."""

from collections.abc import Sequence

import numpy as np

from ppe_lora.corpus.ngrams import read_new
from ppe_lora.evaluation.metrics import Matrix, Scale, mse_norm
from ppe_lora.tasks.scores import ScoresTask


def train_mean_mse_norm(train_NK: Matrix, target_NK: Matrix, task: ScoresTask) -> float:
    """mse_norm of always answering the mean of the training targets, unrounded, on N evaluation rows.

    Raises:
        MetricError: No evaluation rows.
    """
    predicted_NK = np.broadcast_to(train_NK.mean(axis=0), target_NK.shape)
    return mse_norm(predicted_NK, target_NK, Scale(task.low, task.high))


def constant_mse_norm(target_NK: Matrix, task: ScoresTask) -> float:
    """mse_norm of always answering the middle of the range.

    Raises:
        MetricError: No evaluation rows.
    """
    return mse_norm(np.full_like(target_NK, (task.low + task.high) / 2), target_NK, Scale(task.low, task.high))


def ridge_mse_norm(
    train_texts: Sequence[str], train_NK: Matrix, texts: Sequence[str], target_NK: Matrix, task: ScoresTask
) -> float:
    """mse_norm of ridge regression on character n-grams of the request, its answers kept within the range, unrounded.

    Args:
        train_texts: Requests of the training rows.
        train_NK: Their targets, in task units.
        texts: Requests of the N evaluation rows.
        target_NK: Their targets.
        task: Gives the range.

    Raises:
        MetricError: No evaluation rows.
    """
    predicted_NK = np.clip(read_new(train_texts, train_NK, texts), task.low, task.high)
    return mse_norm(predicted_NK, target_NK, Scale(task.low, task.high))
