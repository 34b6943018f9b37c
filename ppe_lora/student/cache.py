"""Prompts whose keys and values are kept, to be continued chunk by chunk. B rows, W tokens of a chunk, C columns."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from ppe_lora.student.layout import Layout
from ppe_lora.student.load import StudentModel


class Chunk(NamedTuple):
    """The next tokens of each row, padded on the left so that all rows end in the last column."""

    ids_BW: torch.Tensor
    sees_BWW: torch.Tensor
    """Whether the token of a row may see the token of a column, inside the chunk."""


def chunk_of(layouts: Sequence[Layout], pad_id: int) -> Chunk:
    """The chunk of one layout per row."""
    width = max(len(layout.ids) for layout in layouts)
    ids_BW = torch.full((len(layouts), width), pad_id)
    sees_BWW = torch.eye(width, dtype=torch.bool).repeat(len(layouts), 1, 1)  # padding sees itself: softmax needs one
    for row, layout in enumerate(layouts):
        gap = width - len(layout.ids)
        ids_BW[row, gap:] = layout.ids
        sees_BWW[row, gap:, gap:] = layout.mask
    return Chunk(ids_BW, sees_BWW)


class PromptCache:
    """The columns that a batch of rows has been fed so far, and which of them each row still sees.

    A chunk may hold more than becomes text, such as the branches of a score or a text only to be scored: its columns
    stay unseen by what follows until `see` names them.
    """

    def __init__(self, model: StudentModel, beginning: DynamicCache | None, rows: int) -> None:
        """Begin `rows` rows behind the instruction that `encode_instruction` encoded, or behind nothing."""
        self.model = model
        self.cache = copy.deepcopy(beginning) if beginning is not None else DynamicCache()
        self.cache.batch_repeat_interleave(rows)
        self.seen_BC = torch.ones(rows, self.cache.get_seq_length(), dtype=torch.bool)

    def feed(self, chunk: Chunk, keep: int, seen_BC: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, keep, vocabulary) of the last `keep` columns of a chunk, which sees what its rows see so far, or
        the columns of `seen_BC` only (the first ones; later columns are unseen)."""
        seen_BC = self.seen_BC if seen_BC is None else _widened(seen_BC, self.seen_BC.shape[1])
        rows, width = chunk.ids_BW.shape
        mask_BWC = torch.cat([seen_BC[:, None].expand(rows, width, -1), chunk.sees_BWW], dim=2)
        device: Any = self.model.device
        logits: torch.Tensor = self.model(
            input_ids=chunk.ids_BW.to(device),
            attention_mask=mask_BWC[:, None].to(device),
            position_ids=(mask_BWC.sum(2) - 1).to(device),  # as many tokens are in front as it sees
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        self.seen_BC = _widened(self.seen_BC, self.seen_BC.shape[1] + width)
        return logits

    def see(self, columns_B: Sequence[Sequence[int]]) -> None:
        """From now on each row also sees these columns, counted from the end of the last chunk (-1 is its last)."""
        for row, columns in enumerate(columns_B):
            self.seen_BC[row, list(columns)] = True


def encode_instruction(model: StudentModel, ids: Sequence[int]) -> DynamicCache:
    """Keys and values of the tokens that many prompts begin with, at batch size 1."""
    cache = DynamicCache()
    model(input_ids=torch.tensor([list(ids)], device=model.device), past_key_values=cache, logits_to_keep=1)
    return cache


def _widened(seen_BC: torch.Tensor, columns: int) -> torch.Tensor:
    return torch.nn.functional.pad(seen_BC, (0, columns - seen_BC.shape[1]))
