"""Rows to batches, packed or padded, and the loss on their completions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from ppe_lora.console import console
from ppe_lora.student.encode import EncodedRow
from ppe_lora.student.layout import IGNORED, lay_out, rows_as_runs
from ppe_lora.student.load import StudentModel
from ppe_lora.student.processes import processes

Batch = dict[str, torch.Tensor]
"""`input_ids`, `position_ids` and `labels` (B, T); `attention_mask` (B, T), or (B, 1, T, T) boolean in a pack. A label
is the token that its position has to predict, or -100."""


class PackedCollator:
    """Lays the rows of a micro-step out as one pack (B = 1): no padding, the shared instruction once."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Collate rows with the keys `prompt_ids`, `completion_ids` and `shared`."""
        layout = lay_out(rows_as_runs([(row["prompt_ids"], row["completion_ids"], row["shared"]) for row in rows]))
        return {
            "input_ids": layout.ids[None],
            "position_ids": layout.positions[None],
            "attention_mask": layout.mask[None, None],
            "labels": layout.labels[None],
        }


class PaddedCollator:
    """One row a line, padded on the left, so that all completions share the last columns: where packs are not exact."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Collate rows with the keys `prompt_ids` and `completion_ids`."""
        width = max(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)
        input_ids, mask, labels = [], [], []
        for row in rows:
            tokens = [*row["prompt_ids"], *row["completion_ids"]]
            pad, unsupervised = width - len(tokens), width - len(row["completion_ids"]) - 1
            input_ids.append([self.pad_id] * pad + tokens)
            mask.append([0] * pad + [1] * len(tokens))
            labels.append([IGNORED] * unsupervised + [*row["completion_ids"], IGNORED])
        attention_mask = torch.tensor(mask)
        return {
            "input_ids": torch.tensor(input_ids),
            "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
            "attention_mask": attention_mask,
            "labels": torch.tensor(labels),
        }


Collator = PackedCollator | PaddedCollator

_TRIED_ROWS = 6


def completion_nll(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed negative log-likelihood (nats) of the completions of a batch, and how many tokens that is.

    Logits are computed only for columns that predict a completion token, and softmaxes are taken in float32.

    Args:
        model: A causal language model that knows `logits_to_keep`.
        batch: From a collator, on the model's device.
    """
    labels = batch["labels"]
    columns = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        logits_to_keep=columns,
        use_cache=False,
    ).logits
    wanted = labels[:, columns]
    nll = functional.cross_entropy(
        logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return nll, (wanted != IGNORED).sum()


def choose_collator(model: StudentModel, rows: Sequence[EncodedRow], pad_id: int) -> Collator:
    """The collator for a model: packed, or padded with one warning where a pack would not be exact.

    That is so where the architecture ignores a 4-D mask, or where a sliding window is shorter than a pack. It is found
    by trying, on the longest rows, not from a list of names.
    """
    longest = sorted(rows, key=lambda row: len(row.prompt_ids) + len(row.completion_ids))[-_TRIED_ROWS:]
    if packs_exactly(model, longest, pad_id):
        return PackedCollator()
    if processes().is_main_process:
        console.print(
            "[yellow]warning:[/yellow] this model does not compute a pack of rows as it does the rows alone; "
            "training on padded batches instead, which is slower"
        )
    return PaddedCollator(pad_id)


@torch.no_grad()
def packs_exactly(model: StudentModel, rows: Sequence[EncodedRow], pad_id: int) -> bool:
    """Whether the model gives a pack of rows the loss that it gives the same rows padded.

    The tolerance is that of the model's type: 1e-4 of the loss in float32, 2 % in half precision or on quantized
    weights.
    """
    was_training = model.training
    model.eval()
    try:
        losses = []
        for collate in (PackedCollator(), PaddedCollator(pad_id)):
            batch = {name: tensor.to(model.device) for name, tensor in collate([row._asdict() for row in rows]).items()}
            losses.append(float(completion_nll(model, batch)[0]))
    finally:
        model.train(was_training)
    exact = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    return abs(losses[0] - losses[1]) <= (1e-4 if exact else 2e-2) * abs(losses[1])
