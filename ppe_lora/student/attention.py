"""Attention over a pack block by block: the layout knows who sees whom, so the rest is never computed.

The mask of a pack of R rows is empty but for a block per row and the instruction in front of it. Computed whole, as one
masked attention over T tokens, it costs T^2; block by block about T^2 / R. The result is the same: every token still
attends to exactly what its mask names. T tokens of the pack, G blocks.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

IMPLEMENTATION = "sdpa_blocks"
"""`attn_implementation` of models that are given packs: by blocks where `blocks` is passed to the model, else SDPA."""


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    blocks: Sequence[tuple[int, int]] | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(scaling * query key^T + mask) value, for each block by itself.

    Args:
        module: The attention layer.
        query: (1, heads, T, width), as are key and value, which may have fewer heads.
        key: The keys.
        value: The values.
        attention_mask: (1, 1, T, T) boolean.
        blocks: From `Layout.blocks`; None computes attention whole by SDPA, for any shape.
        scaling: 1 / sqrt(width) if None.
        kwargs: For SDPA.
    """
    heads_a_key = query.shape[1] // key.shape[1]
    if blocks is None or attention_mask is None:
        plain = kwargs.get("position_bias") is None and kwargs.get("softcap") is None and not module.training
        shared = heads_a_key > 1 and attention_mask is not None and attention_mask.shape[1] == 1
        if attention_mask is not None and plain and shared and query.device.type == "cpu":
            return _attend_by_key_heads(query, key, value, attention_mask, scaling), None
        whole: Any = sdpa_attention_forward
        found: tuple[torch.Tensor, None] = whole(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return found
    # Pieces by one split: the gradient of a split is one concatenation, that of slices a whole tensor of zeros each.
    sizes = [size for size, _ in blocks]
    query_G, key_G, value_G = (
        states.split(sizes, dim=2)
        for states in (
            query * (scaling or query.shape[-1] ** -0.5),
            repeat_kv(key, heads_a_key),
            repeat_kv(value, heads_a_key),
        )
    )
    starts = [0, *itertools.accumulate(sizes)]
    parts = []
    for block, (size, front) in enumerate(blocks):
        mask = attention_mask[..., starts[block] : starts[block] + size, :]
        seen = [block] if front < 0 else [front, block]
        own_mask = torch.cat([mask[..., starts[other] : starts[other + 1]] for other in seen], dim=-1)
        keys, values = (torch.cat([pieces[other] for other in seen], dim=2) for pieces in (key_G, value_G))
        scores = (query_G[block] @ keys.transpose(-1, -2)).masked_fill(~own_mask, float("-inf"))
        # Written out, since on CPUs SDPA's backward pass is slower for blocks this small (LOG.md).
        parts.append(
            scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype) @ values
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _attend_by_key_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Masked attention, (B, W, heads, width), with the queries that share a key head behind each other: transformers
    repeats all cached keys and values instead, in every layer and pass."""
    batch, heads, width, size = query.shape
    shared = heads // key.shape[1]
    packed = query.reshape(batch, key.shape[1], shared * width, size)
    attended = functional.scaled_dot_product_attention(
        packed, key, value, attn_mask=mask.repeat(1, 1, shared, 1), scale=scaling
    )
    return attended.reshape(batch, heads, width, value.shape[-1]).transpose(1, 2).contiguous()


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
