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

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
    runs: torch.Tensor
    """(T,) the run that each token belongs to."""
    ancestors: torch.Tensor
    """(R, R) boolean: whether the run of a column is the run of a row itself, or one of its ancestors."""
    mask: torch.Tensor
    """(T, T) boolean: `mask_mod` of all pairs, whether the token of a row may see the token of a column."""
    blocks: list[tuple[int, int]]
    """Where the mask is not empty, G blocks from left to right: how many tokens, and which block in front of them they
    see besides each other (-1 for none). A block is a root, or a row behind its root; where no such blocks hold all
    that the mask holds, there is one of all tokens."""


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
    run_T, order_T = torch.tensor(run_of), torch.arange(len(ids))
    mask_TT = mask_mod(run_T, ancestor_RR)(0, 0, order_T[:, None], order_T)
    return Layout(
        ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        labels=torch.tensor(labels),
        runs=run_T,
        ancestors=ancestor_RR,
        mask=mask_TT,
        blocks=_blocks(runs, mask_TT),
    )


def mask_mod(run_T: torch.Tensor, ancestor_RR: torch.Tensor) -> Callable[[Any, Any, torch.Tensor, torch.Tensor], Any]:
    """Which token may see which, as FlexAttention takes it: of batch, head, and the places of both tokens.

    Args:
        run_T: `Layout.runs`.
        ancestor_RR: `Layout.ancestors`, on the same device.
    """

    def sees(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        own, other = run_T[query], run_T[key]
        return ancestor_RR[own, other] & ((own != other) | (query >= key))

    return sees


def _blocks(runs: Sequence[Run], mask_TT: torch.Tensor) -> list[tuple[int, int]]:
    blocks: list[tuple[int, int]] = []
    block_of_root: dict[int, int] = {}
    tops: list[int] = []  # per run, its ancestor next to the root, or the root itself
    for index, run in enumerate(runs):
        near_root = run.parent is None or runs[run.parent].parent is None
        tops.append(index if run.parent is None or near_root else tops[run.parent])
        if index and tops[index] == tops[index - 1]:
            blocks[-1] = blocks[-1][0] + len(run.ids), blocks[-1][1]
        else:
            parent = runs[tops[index]].parent
            blocks.append((len(run.ids), -1 if parent is None else block_of_root[parent]))
        if run.parent is None:
            block_of_root[index] = len(blocks) - 1
    sizes = [size for size, _ in blocks]
    held_GG = torch.eye(len(blocks), dtype=torch.bool)
    for block, (_, front) in enumerate(blocks):
        held_GG[block, front] |= front >= 0
    of_T = torch.arange(len(blocks)).repeat_interleave(torch.tensor(sizes))
    return [(len(of_T), -1)] if (mask_TT & ~held_GG[of_T][:, of_T]).any() else blocks


def next_labels(ids: Sequence[int], supervised: int, following: int | None = None) -> list[int]:
    """Labels of a run whose last `supervised` tokens the loss counts; `following` is what its last token predicts."""
    first = len(ids) - supervised
    inside = [token if place >= first else IGNORED for place, token in enumerate(ids)]
    return [*inside[1:], IGNORED if following is None else following]
