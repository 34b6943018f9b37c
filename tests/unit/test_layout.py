"""The layout against its meaning: a token sees its ancestors and its own run up to itself."""

import warnings

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from ppe_lora.student.layout import IGNORED, Run, lay_out, mask_mod, next_labels


@st.composite
def forests(draw: st.DrawFn) -> list[Run]:
    runs: list[Run] = []
    for index in range(draw(st.integers(1, 7))):
        ids = draw(st.lists(st.integers(0, 99), min_size=1, max_size=4))
        parent = draw(st.one_of(st.none(), st.integers(0, index - 1))) if index else None
        runs.append(Run(ids, parent, next_labels(ids, draw(st.integers(0, len(ids))))))
    return runs


@given(forests())
def test_each_run_is_laid_out_as_if_it_stood_alone_behind_its_ancestors(runs):
    """Checked token by token against the chain of runs from the root."""
    layout = lay_out(runs)
    place = {}
    for index, run in enumerate(runs):
        for offset in range(len(run.ids)):
            place[index, offset] = len(place)
    for index, run in enumerate(runs):
        line, ancestor = [], run.parent
        while ancestor is not None:
            line = [*((ancestor, offset) for offset in range(len(runs[ancestor].ids))), *line]
            ancestor = runs[ancestor].parent
        line += [(index, offset) for offset in range(len(run.ids))]
        for offset, token in enumerate(run.ids):
            here = place[index, offset]
            depth = len(line) - len(run.ids) + offset
            assert layout.ids[here] == token
            assert layout.positions[here] == depth
            seen = {place[step] for step in line[: depth + 1]}
            assert set(layout.mask[here].nonzero().flatten().tolist()) == seen
            assert layout.labels[here] == run.labels[offset]


def test_by_hand():
    """Two rows behind one instruction, and a row of another."""
    runs = [
        Run([7, 8]),
        Run([1, 2, 3], 0, next_labels([1, 2, 3], 2)),
        Run([4, 5], 0, next_labels([4, 5], 1)),
        Run([9]),
        Run([6, 2], 3, next_labels([6, 2], 1)),
    ]
    layout = lay_out(runs)
    assert layout.ids.tolist() == [7, 8, 1, 2, 3, 4, 5, 9, 6, 2]
    assert layout.positions.tolist() == [0, 1, 2, 3, 4, 2, 3, 0, 1, 2]
    assert layout.labels.tolist() == [-100, -100, 2, 3, -100, 5, -100, -100, 2, -100]
    assert layout.mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 1, 1],
    ]


def test_labels_are_the_next_tokens_and_may_reach_into_the_child():
    """A row is cut at its scores; the token after the cut is predicted by the last one before it."""
    assert next_labels([1, 2, 3], 1) == [IGNORED, 3, IGNORED]
    assert next_labels([1, 2, 3], 3, following=9) == [2, 3, 9]
    assert next_labels([1], 0, following=9) == [9]


def test_roots_see_only_themselves():
    layout = lay_out([Run([1, 2, 3]), Run([4, 5, 6])])
    assert layout.positions.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(layout.mask, torch.block_diag(*[torch.ones(3, 3).tril()] * 2).bool())


@given(forests())
def test_blocks_hold_all_that_the_mask_holds(runs):
    """A token that is seen outside of its block would be left out of the attention in silence."""
    layout = lay_out(runs)
    starts = [0]
    for size, _ in layout.blocks:
        starts.append(starts[-1] + size)
    assert starts[-1] == len(layout.ids)
    held = torch.zeros_like(layout.mask)
    for block, (_, front) in enumerate(layout.blocks):
        assert front < block
        for other in {block, front} - {-1}:
            held[starts[block] : starts[block + 1], starts[other] : starts[other + 1]] = True
    assert not (layout.mask & ~held).any()


def test_blocks_by_hand():
    """An instruction, two rows behind it with branches of their own, and a row that stands alone."""
    runs = [Run([7, 8]), Run([1, 2], 0), Run([3], 1), Run([4, 5, 6], 0), Run([9], 3), Run([2, 2])]
    assert lay_out(runs).blocks == [(2, -1), (3, 0), (4, 0), (2, -1)]


@given(forests())
@settings(max_examples=10, deadline=None)
def test_flex_attention_sees_what_the_mask_says(runs):
    """The rule given to FlexAttention and the dense mask given to SDPA have to be the same attention."""
    layout = lay_out(runs)
    tokens = len(layout.ids)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, tokens, 16, generator=generator) for _ in range(3))
    rule = mask_mod(layout.runs, layout.ancestors)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        blocks = create_block_mask(rule, None, None, tokens, tokens, device="cpu")
        flex = flex_attention(query, key, value, block_mask=blocks)
    dense = functional.scaled_dot_product_attention(query, key, value, attn_mask=layout.mask)
    torch.testing.assert_close(flex, dense)
