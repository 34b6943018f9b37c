"""Prompts whose keys and values are kept, to be continued chunk by chunk. B rows, W tokens of a chunk, C columns."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import DynamicCache

from ppe_lora.student.layout import Run, lay_out
from ppe_lora.student.load import StudentModel
from ppe_lora.student.outputs import Outputs, run


class Chunk(NamedTuple):
    """The next tokens of each row: its own, padded on the left so that all rows end in one column, and behind them what
    is the same for every row."""

    ids_BW: torch.Tensor
    sees_BWW: torch.Tensor
    """Whether the token of a row may see the token of a column, inside the chunk."""
    own_BW: torch.Tensor
    """Which columns are the row's own."""


def chunk_of(own_B: Sequence[Sequence[int]], pad_id: int, behind: Sequence[Run] = ()) -> Chunk:
    """The chunk of each row's own tokens, with the same runs behind them: run 0 of their parents is the row's own."""
    longest = max(own_B, key=len)
    layout = lay_out([Run(longest), *behind])  # of the other rows, it is what their padding leaves of it
    width = len(layout.ids)
    ids_BW = layout.ids.repeat(len(own_B), 1)
    padded = [[*[pad_id] * (len(longest) - len(own)), *own] for own in own_B]
    ids_BW[:, : len(longest)] = torch.tensor(padded, dtype=torch.long)
    column_W = torch.arange(width)
    real_BW = column_W >= torch.tensor([[len(longest) - len(own)] for own in own_B])
    itself_WW = torch.eye(width, dtype=torch.bool)  # padding sees itself: softmax needs one
    return Chunk(ids_BW, layout.mask & real_BW[:, None] | itself_WW, real_BW & (column_W < len(longest)))


class PromptCache:
    """The columns that a batch of rows has been fed so far, and which of them each row still sees.

    A chunk may hold more than becomes text, such as the branches of a score or a text only to be scored: its columns
    stay unseen by what follows until `see` names them.
    """

    def __init__(
        self, model: StudentModel, beginning: DynamicCache | None, rows: int, unembedding: nn.Linear | None = None
    ) -> None:
        """Begin `rows` rows behind the instruction that `encode_instruction` encoded, or behind nothing.

        Args:
            model: The bare model.
            beginning: The instruction.
            rows: How many.
            unembedding: The model's, from `outputs.unembedding_of`; without it, logits are computed whole.
        """
        self.model = model
        self.unembedding = unembedding
        self.cache = copy.deepcopy(beginning) if beginning is not None else DynamicCache()
        self.cache.batch_repeat_interleave(rows)
        self.seen_BC = torch.ones(rows, self.cache.get_seq_length(), dtype=torch.bool)

    def feed(self, chunk: Chunk, keep: int, seen_BC: torch.Tensor | None = None) -> Outputs:
        """The last `keep` columns (B, keep) of a chunk, which sees what its rows see so far, or the columns of
        `seen_BC` only (the first ones; later columns are unseen)."""
        seen_BC = self.seen_BC if seen_BC is None else _widened(seen_BC, self.seen_BC.shape[1])
        rows, width = chunk.ids_BW.shape
        mask_BWC = torch.cat([seen_BC[:, None].expand(rows, width, -1), chunk.sees_BWW], dim=2)
        device: Any = self.model.device
        outputs = run(
            self.model,
            self.unembedding,
            keep,
            input_ids=chunk.ids_BW.to(device),
            attention_mask=mask_BWC[:, None].to(device),
            position_ids=(mask_BWC.sum(2) - 1).to(device),  # as many tokens are in front as it sees
            past_key_values=self.cache,
            use_cache=True,
        )
        self.seen_BC = _widened(self.seen_BC, self.seen_BC.shape[1] + width)
        return outputs

    def see(self, columns_BW: torch.Tensor) -> None:
        """From now on each row also sees these columns of the last chunk."""
        self.seen_BC[:, -columns_BW.shape[1] :] |= columns_BW


def encode_instruction(model: StudentModel, ids: Sequence[int]) -> DynamicCache:
    """Keys and values of the tokens that many prompts begin with, at batch size 1."""
    cache = DynamicCache()
    model(input_ids=torch.tensor([list(ids)], device=model.device), past_key_values=cache, logits_to_keep=1)
    return cache


def _widened(seen_BC: torch.Tensor, columns: int) -> torch.Tensor:
    return torch.nn.functional.pad(seen_BC, (0, columns - seen_BC.shape[1]))
