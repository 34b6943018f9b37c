"""What a data set looks like: moments and quantiles of every key, counts of everything else."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppe_lora.corpus.rows import Row, targets_matrix
from ppe_lora.recipe.schema import SplitName
from ppe_lora.tasks.scores import ScoresTask

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def dataset_stats(by_split: Mapping[SplitName, Sequence[Row]], task: ScoresTask) -> dict[str, Any]:
    """The content of `stats.json`.

    Args:
        by_split: Rows of each split; none may be empty.
        task: Names the keys.

    Returns:
        `keys`: split, key, then `mean`, `variance` (the population's) and `quantiles` in task units; `counts`: rows
        by split, and by language, style and sampler within each split.
    """
    return {
        "keys": {split: _key_stats(rows, task) for split, rows in by_split.items()},
        "counts": {
            "split": {split: len(rows) for split, rows in by_split.items()},
            **{
                field: {split: count_field(rows, field) for split, rows in by_split.items()}
                for field in ("language", "style", "sampler")
            },
        },
    }


def _key_stats(rows: Sequence[Row], task: ScoresTask) -> dict[str, dict[str, Any]]:
    values_NK = np.array(targets_matrix(rows, task), dtype=float)
    return {
        key: {
            "mean": round(float(values_N.mean()), 6),
            "variance": round(float(values_N.var()), 6),
            "quantiles": {str(q): round(float(np.quantile(values_N, q)), 6) for q in _QUANTILES},
        }
        for key, values_N in zip(task.keys, values_NK.T, strict=True)
    }


def count_field(rows: Sequence[Row], field: str) -> dict[str, int]:
    """Rows by the value of a field, sorted by value; rows without one count as `none`."""
    return dict(sorted(Counter(str(getattr(row, field) or "none") for row in rows).items()))
