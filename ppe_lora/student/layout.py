"""Which token may see which: a forest of token runs, laid out as one sequence without padding.

A run is a stretch of tokens with at most one parent. A token sees its whole line of ancestors, and its own run up to
itself; nothing else. The instruction that many rows share is the parent of those rows and is encoded once:

    pack:        [instruction en][row 1     ][row 2   ][instruction ja][row 3       ]
    positions:    0 .. 41         42 .. 97    42 .. 88   0 .. 37         38 .. 101
    row 2 sees:   all of it       nothing     itself     nothing         nothing

This is exact, not an approximation: each row gets the logits and gradients it would get alone, because attention sees
the same tokens at the same positions (tested against every row by itself).

T tokens of the pack, R runs, G blocks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

IGNORED = -100
"""Label of a position that predicts nothing the loss counts."""


class Run(NamedTuple):
    """A stretch of tokens behind its parent's last token (behind nothing for a root)."""

    ids: Sequence[int]
    parent: int | None = None
    """Index of the parent among the runs; it comes before its children."""
    labels: Sequence[int] = ()
    """What each token has to predict, or -100; nothing at all if empty."""


class Layout(NamedTuple):
    """Runs laid out one behind the other. All tensors are on the CPU."""

    ids: torch.Tensor
    """(T,) token ids."""
    positions: torch.Tensor
    """(T,) positions: the number of tokens in front, ancestors included."""
    labels: torch.Tensor
    """(T,) the token that each position has to predict, or -100."""
    mask: torch.Tensor
    """(T, T) boolean: whether the token of a row may see the token of a column."""
    blocks: torch.Tensor
    """(G, 4) where the mask is not empty: the tokens from start to end see no others than those from front to front_end
    and each other. A block is a root, or a row behind its root; where that is not so, one block is the whole."""


def lay_out(runs: Sequence[Run]) -> Layout:
    """Lay a forest of runs out as one sequence.

    Raises:
        ValueError: A parent does not come before its child, or labels and tokens differ in number.
    """
    ids: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    run_of: list[int] = []
    ends: list[int] = []
    ancestor_RR = torch.eye(len(runs), dtype=torch.bool)
    for index, run in enumerate(runs):
        start = 0
        if run.parent is not None:
            if not 0 <= run.parent < index:
                raise ValueError(f"run {index}: expected a parent before it; got {run.parent}")
            start = ends[run.parent]
            ancestor_RR[index] |= ancestor_RR[run.parent]
        if run.labels and len(run.labels) != len(run.ids):
            raise ValueError(f"run {index}: expected {len(run.ids)} labels; got {len(run.labels)}")
        ids += run.ids
        positions += range(start, start + len(run.ids))
        labels += run.labels or [IGNORED] * len(run.ids)
        run_of += [index] * len(run.ids)
        ends.append(start + len(run.ids))
    run_T = torch.tensor(run_of)
    order_T = torch.arange(len(ids))
    same_TT = run_T[:, None] == run_T[None, :]
    mask_TT = ancestor_RR[run_T][:, run_T] & (~same_TT | (order_T[:, None] >= order_T[None, :]))
    blocks = _blocks(runs, mask_TT)
    return Layout(torch.tensor(ids), torch.tensor(positions), torch.tensor(labels), mask_TT, torch.tensor(blocks))


def _blocks(runs: Sequence[Run], mask_TT: torch.Tensor) -> list[list[int]]:
    blocks: list[list[int]] = []
    tops: list[int] = []  # per run, its ancestor next to the root, or the root itself
    for index, run in enumerate(runs):
        near_root = run.parent is None or runs[run.parent].parent is None
        tops.append(index if run.parent is None or near_root else tops[run.parent])
        start = blocks[-1][1] if blocks else 0
        if index and tops[index] == tops[index - 1]:
            blocks[-1][1] = start + len(run.ids)
        else:
            blocks.append([start, start + len(run.ids), 0, 0])
    for block in blocks:
        seen_T = mask_TT[block[0] : block[1]].any(dim=0)
        seen_T[block[0] : block[1]] = False
        front = seen_T.nonzero().flatten()
        if len(front):
            block[2:] = int(front[0]), int(front[-1]) + 1
            if not seen_T[block[2] : block[3]].all():
                return [[0, len(seen_T), 0, 0]]
    return blocks


def next_labels(ids: Sequence[int], supervised: int, following: int | None = None) -> list[int]:
    """Labels of a run whose last `supervised` tokens the loss counts; `following` is what its last token predicts."""
    first = len(ids) - supervised
    inside = [token if place >= first else IGNORED for place, token in enumerate(ids)]
    return [*inside[1:], IGNORED if following is None else following]
