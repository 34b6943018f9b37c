"""Attention over a pack block by block: the layout knows who sees whom, so the rest is never computed.

The mask of a pack of R rows is empty but for a block per row and the instruction in front of it. Computed whole, as one
masked attention over T tokens, it costs T^2; block by block about T^2 / R. The result is the same: every token still
attends to exactly what its mask names. T tokens of the pack, G blocks.
"""

from typing import Any, cast

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

IMPLEMENTATION = "sdpa_blocks"
"""`attn_implementation` of models that are given packs: SDPA, by blocks where `blocks` is passed to the model."""


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    blocks: list[list[int]] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA, as transformers has it, of each block by itself.

    Args:
        module: The attention layer.
        query: (1, heads, T, width), as are key and value, which may have fewer heads.
        key: The keys.
        value: The values.
        attention_mask: (1, 1, T, T) boolean.
        blocks: From `Layout.blocks`; None computes attention whole, for any shape.
        kwargs: For `sdpa_attention_forward`.
    """
    sdpa: Any = sdpa_attention_forward
    if blocks is None or attention_mask is None:
        return cast(tuple[torch.Tensor, None], sdpa(module, query, key, value, attention_mask, **kwargs))
    parts = []
    for start, end, front_start, front_end in blocks:
        mask = torch.cat(
            [attention_mask[..., start:end, front_start:front_end], attention_mask[..., start:end, start:end]], -1
        )
        keys, values = (torch.cat([kv[:, :, front_start:front_end], kv[:, :, start:end]], 2) for kv in (key, value))
        parts.append(sdpa(module, query[:, :, start:end], keys, values, mask, **kwargs)[0])
    return torch.cat(parts, dim=1), None


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
