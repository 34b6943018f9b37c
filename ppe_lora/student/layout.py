"""Which token may see which: a forest of token runs, laid out as one sequence without padding.

A run is a stretch of tokens with at most one parent. A token sees its whole line of ancestors, and its own run up to
itself; nothing else. The instruction that many rows share is the parent of those rows and is encoded once:

    pack:        [instruction en][row 1     ][row 2   ][instruction ja][row 3       ]
    positions:    0 .. 41         42 .. 97    42 .. 88   0 .. 37         38 .. 101
    row 2 sees:   all of it       nothing     itself     nothing         nothing

This is exact, not an approximation: each row gets the logits and gradients it would get alone, because attention sees
the same tokens at the same positions (tested against every row by itself).

T tokens of the pack, R runs.
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
    supervised: int = 0
    """How many of the last tokens the loss counts; the token before the first of them must be in the same run."""


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


def lay_out(runs: Sequence[Run]) -> Layout:
    """Lay a forest of runs out as one sequence.

    Raises:
        ValueError: A parent does not come before its child, or a supervised token has nothing in its run to predict it.
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
        if run.supervised and run.supervised >= len(run.ids):
            raise ValueError(f"run {index}: expected a token before its {run.supervised} supervised ones; got none")
        first = len(run.ids) - run.supervised
        ids += run.ids
        positions += range(start, start + len(run.ids))
        following = [*run.ids[1:], IGNORED]
        labels += [token if place + 1 >= first else IGNORED for place, token in enumerate(following)]
        run_of += [index] * len(run.ids)
        ends.append(start + len(run.ids))
    run_T = torch.tensor(run_of)
    order_T = torch.arange(len(ids))
    same_TT = run_T[:, None] == run_T[None, :]
    mask_TT = ancestor_RR[run_T][:, run_T] & (~same_TT | (order_T[:, None] >= order_T[None, :]))
    return Layout(torch.tensor(ids), torch.tensor(positions), torch.tensor(labels), mask_TT)


def rows_as_runs(rows: Sequence[tuple[Sequence[int], Sequence[int], int]]) -> list[Run]:
    """Rows as a forest: each distinct shared beginning once, as a root, and the rest of each row below it.

    Args:
        rows: Prompt ids, completion ids, and how many of the first prompt ids are shared with other rows; fewer than
            the prompt has.
    """
    runs: list[Run] = []
    root_of: dict[tuple[int, ...], int] = {}
    for prompt, completion, shared in rows:
        beginning = tuple(prompt[:shared])
        parent = root_of.get(beginning)
        if parent is None and beginning:
            parent = root_of[beginning] = len(runs)
            runs.append(Run(beginning))
        runs.append(Run([*prompt[shared:], *completion], parent, len(completion)))
    return runs
