"""Rows to padded batches, and the loss on their completions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

IGNORED = -100
"""Label of a token that carries no loss."""


class CompletionCollator:
    """Lays rows out right-aligned, so that all completions share the last columns.

    The output head then only runs on those columns (`logits_to_keep`), a third of a typical row.

    Shapes: B rows, T tokens of the longest row. `input_ids`, `attention_mask`, `position_ids` and `labels` are (B, T);
    labels are token ids on the completion, its end token included, and -100 elsewhere.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate rows with the keys `prompt_ids` and `completion_ids`."""
        width = max(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)
        input_ids, mask, labels = [], [], []
        for row in rows:
            tokens = [*row["prompt_ids"], *row["completion_ids"]]
            pad = width - len(tokens)
            input_ids.append([self.pad_id] * pad + tokens)
            mask.append([0] * pad + [1] * len(tokens))
            labels.append([IGNORED] * (width - len(row["completion_ids"])) + list(row["completion_ids"]))
        attention_mask = torch.tensor(mask)
        return {
            "input_ids": torch.tensor(input_ids),
            "attention_mask": attention_mask,
            "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
            "labels": torch.tensor(labels),
        }


def completion_nll(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed negative log-likelihood (nats) of the completions of a batch, and how many tokens that is.

    Logits are computed for the columns that hold a completion in some row, and softmaxes are taken in float32.

    Args:
        model: A causal language model that knows `logits_to_keep`.
        batch: Output of `CompletionCollator`, on the model's device.
    """
    labels = batch["labels"]
    columns = int((labels != IGNORED).any(dim=0).sum())
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        logits_to_keep=columns + 1,
        use_cache=False,
    ).logits[:, :-1]
    wanted = labels[:, -columns:]
    nll = functional.cross_entropy(
        logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return nll, (wanted != IGNORED).sum()
