"""Rows to batches, packed or padded, and the loss on their completions."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from ppe_lora.console import warn
from ppe_lora.student.encode import EncodedRow
from ppe_lora.student.layout import IGNORED, Run, lay_out, next_labels
from ppe_lora.student.load import StudentModel
from ppe_lora.student.outputs import Outputs, at_least_float32, last_states
from ppe_lora.student.processes import processes
from ppe_lora.student.tensors import OVERFLOWS, NotFinite
from ppe_lora.student.trie import ScoreTrie, Slot, add_branches, add_slots_alone

Batch = dict[str, torch.Tensor]
"""`input_ids`, `position_ids` and `labels` (B, T); `attention_mask` (B, T), or (B, 1, T, T) boolean in a pack. A label
is the token that its position has to predict, or -100.

A pack of N rows also has the `blocks` (G, 2) of its mask (see `Layout.blocks`); `requests` (N, 2), the first column and
the number of the prompt tokens that are a row's own, behind the shared instruction; and, where rows have them, `leaves`
(N, K), the targets' indices among the trie's values, and `folds` (N), see `head`. With S = N K slots it has
`slot_columns` (S, M), where the logits of a slot's choices are, and `slot_terminator_of` (S), the key whose terminator
ends the value there. Slots come key by key, row by row."""


class PackedCollator:
    """Lays the rows of a micro-step out as one pack (B = 1): no padding, the shared instruction once.

    With a trie, each score's branches are laid out behind its slot:

        [instruction] <- [request 1 {"energy":] <- [42,"warmth":] <- [77}]
                              ^ ^ ^                    ^ ^ ^
                              1 2 .. 9  (10 behind 1)  1 2 .. 9

    or, where scores are read from the request only:

        [instruction] <- [request 1] <- [{"energy":42,"warmth":77}]
                              ^--------- [{"energy":] <- 1 2 .. 9
                              ^--------- [{"warmth":] <- 1 2 .. 9
    """

    def __init__(self, trie: ScoreTrie | None = None) -> None:
        self.trie = trie

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Collate rows with the keys `prompt_ids`, `completion_ids` and `shared`, and `leaves` (K) with a trie."""
        runs: list[Run] = []
        slots: list[Slot] = []
        requests: list[tuple[int, int]] = []
        root_of: dict[tuple[int, ...], int] = {}
        for row in rows:
            beginning = tuple(row["prompt_ids"][: row["shared"]])
            parent = root_of.get(beginning)
            if parent is None and beginning:
                parent = root_of[beginning] = len(runs)
                runs.append(Run(beginning))
            rest = row["prompt_ids"][row["shared"] :]
            requests.append((len(runs), len(rest)))
            if self.trie is None:
                ids = [*rest, *row["completion_ids"]]
                runs.append(Run(ids, parent, next_labels(ids, len(row["completion_ids"]))))
            else:
                slots += _add_row(runs, rest, parent, row, self.trie)
        layout = lay_out(runs)
        batch = {
            "input_ids": layout.ids[None],
            "position_ids": layout.positions[None],
            "attention_mask": layout.mask[None, None],
            "labels": layout.labels[None],
            "blocks": torch.tensor(layout.blocks),
        }
        end = torch.tensor([len(run.ids) for run in runs]).cumsum(0)
        batch["requests"] = torch.tensor(
            [(int(end[run]) - len(runs[run].ids), length) for run, length in requests]  # a row's first run begins so
        )
        if "leaves" in rows[0]:
            batch["leaves"] = torch.tensor([row["leaves"] for row in rows])
        if "fold" in rows[0]:
            batch["folds"] = torch.tensor([row["fold"] for row in rows])
        if self.trie is not None:
            batch["slot_columns"] = end[torch.tensor([slot.runs for slot in slots])] - 1
            batch["slot_terminator_of"] = torch.tensor([slot.terminator_of for slot in slots])
        return batch


def _add_row(
    runs: list[Run], rest: Sequence[int], parent: int | None, row: dict[str, Any], trie: ScoreTrie
) -> list[Slot]:
    """Append the runs of one row, the branches of its scores among them; return its slots, one per key."""
    if trie.alone is not None:
        completion = row["completion_ids"]
        request = len(runs)
        runs.append(Run(rest, parent, next_labels(rest, 0, completion[0])))
        runs.append(Run(completion, request, next_labels(completion, len(completion))))
        return add_slots_alone(runs, request, trie)
    slots = []
    before: list[int] = [*rest]
    supervised = 0
    for key, leaf in enumerate(row["leaves"]):
        ids = [*before, *trie.leads[key]]
        supervised += len(trie.leads[key])
        slot = len(runs)
        runs.append(Run(ids, parent, next_labels(ids, supervised, trie.paths[leaf][0])))
        slots.append(Slot(add_branches(runs, slot, trie), key))
        parent, before = slot, [*trie.paths[leaf]]
        supervised = len(before)
    ids = [*before, *trie.tail]
    runs.append(Run(ids, parent, next_labels(ids, len(ids))))
    return slots


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


class Read(NamedTuple):
    """What is read of a batch."""

    columns: torch.Tensor
    """Which columns have logits, ascending: those that predict a completion token, and what else was asked for."""
    logits: torch.Tensor
    """(B, columns, vocabulary)."""
    slots: Outputs | None
    """The choices of the slots, (S, M), where they were asked for."""


def read(
    model: torch.nn.Module,
    batch: Batch,
    *,
    slots: bool = False,
    also: torch.Tensor | None = None,
    unembedding: torch.nn.Linear | None = None,
) -> Read:
    """Pass a batch through a model and read what predicts its completions. The logits of other columns, most of a row,
    are never computed.

    Args:
        model: A causal language model that knows `logits_to_keep`, possibly wrapped.
        batch: From a collator, on the model's device.
        slots: Whether to read the choices of its slots, too.
        also: Further columns that need logits over the whole vocabulary.
        unembedding: The model's, from `outputs.unembedding_of`; without it the choices get logits over the whole
            vocabulary.
    """
    columns = (batch["labels"] != IGNORED).any(dim=0).nonzero().squeeze(1)
    for more in ([] if also is None else [also]) + ([batch["slot_columns"]] if slots and unembedding is None else []):
        columns = torch.cat([columns, more.flatten()]).unique()
    with last_states(model) as states:
        logits = model(**model_inputs(batch), logits_to_keep=columns).logits
    if not slots:
        return Read(columns, logits, None)
    if unembedding is None:
        return Read(columns, logits, Outputs(logits[0, torch.searchsorted(columns, batch["slot_columns"])], None))
    return Read(columns, logits, Outputs(states[0][0, batch["slot_columns"]], unembedding))


def model_inputs(batch: Batch) -> dict[str, Any]:
    """What a model's forward pass takes of a batch."""
    inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    if "blocks" in batch and batch["blocks"].device.type == "cpu":  # on a GPU one whole kernel beats many small ones
        inputs["blocks"] = batch["blocks"].tolist()
    return {**inputs, "use_cache": False}


def completion_nll(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed negative log-likelihood (nats) of the completions of a batch, and how many tokens that is.

    Softmaxes are taken in float32, those of a model in float64 in float64.

    Args:
        model: A causal language model that knows `logits_to_keep`.
        batch: From a collator, on the model's device.
    """
    return summed_nll(read(model, batch), batch)


def summed_nll(found: Read, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """`completion_nll` of a batch that has been read already."""
    wanted = batch["labels"][:, found.columns]
    logits = at_least_float32(found.logits.flatten(0, 1))
    nll = functional.cross_entropy(logits, wanted.flatten(), ignore_index=IGNORED, reduction="sum")
    return nll, (wanted != IGNORED).sum()


@torch.no_grad()
def packs_exactly(model: StudentModel, rows: Sequence[EncodedRow], pad_id: int) -> bool:
    """Whether the model gives a pack of rows the loss that it gives the same rows padded, tried on the longest rows.

    It does not where the architecture ignores a 4-D mask, or where a sliding window is shorter than a pack: found by
    trying, not from a list of names. One warning says so. The tolerance is that of the model's type: 1e-4 of the loss
    in float32, 2 % in half precision or on quantized weights.

    Raises:
        NotFinite: The loss is no number, packed or not.
    """
    longest = sorted(rows, key=lambda row: len(row.prompt_ids) + len(row.completion_ids))[-_TRIED_ROWS:]
    was_training = model.training
    model.eval()
    try:
        losses = []
        for collate in (PackedCollator(), PaddedCollator(pad_id)):
            batch = {
                name: tensor.to(model.device) for name, tensor in collate([row._asdict() for row in longest]).items()
            }
            losses.append(float(completion_nll(model, batch)[0]))
    finally:
        model.train(was_training)
    if not math.isfinite(losses[1]):
        raise NotFinite(f"row {longest[-1].id}: expected a finite loss of the model; got {losses[1]}; {OVERFLOWS}")
    exact = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    equal = abs(losses[0] - losses[1]) <= (1e-4 if exact else 2e-2) * abs(losses[1])
    if not equal and processes().is_main_process:
        warn(
            "this model does not compute a pack of rows as it does the rows alone; "
            "using padded batches instead, which is slower, and only the greedy read-out"
        )
    return equal
