"""What a predictor that does not read the request would get."""

import numpy as np

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
