"""A reader without a language model: ridge regression on character n-grams. It needs no word boundaries, so it reads
Japanese as well as English. N texts, K scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_FOLDS = 5
_ALPHAS = (0.3, 1.0, 3.0, 10.0)


def read_out_of_fold(texts: Sequence[str], target_NK: np.ndarray) -> np.ndarray:
    """The scores of each text as read by a reader that learned from the others, shape (N, K)."""
    from sklearn.model_selection import KFold, cross_val_predict  # slow to import, and not every command needs it

    folds = KFold(_FOLDS, shuffle=True, random_state=0)
    read_NK = cross_val_predict(_ridge(1.0), _vectorizer().fit_transform(texts), target_NK, cv=folds)
    return np.asarray(read_NK, dtype=float).reshape(target_NK.shape)


def read_new(train_texts: Sequence[str], train_NK: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """The scores of new texts as read by a reader that learned from the training texts, shape (N, K).

    The strength of the ridge is chosen by cross-validation on the training texts.
    """
    from sklearn.model_selection import GridSearchCV, KFold

    vectorizer = _vectorizer()
    features = vectorizer.fit_transform(train_texts)
    folds = KFold(min(_FOLDS, len(train_texts)), shuffle=True, random_state=0)
    search = GridSearchCV(_ridge(1.0), {"alpha": _ALPHAS}, scoring="neg_mean_squared_error", cv=folds)
    search.fit(features, train_NK)
    return np.asarray(search.predict(vectorizer.transform(texts)), dtype=float).reshape(len(texts), -1)


def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        analyzer="char", ngram_range=(1, 4), max_features=20_000, sublinear_tf=True, dtype=np.float32
    )


def _ridge(alpha: float) -> Any:
    from sklearn.linear_model import Ridge

    return Ridge(alpha=alpha, solver="sparse_cg", tol=1e-2)
