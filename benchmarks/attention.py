"""Attention over a pack, forward and backward: which kernel is exact, and which is fastest on this machine.

    python benchmarks/attention.py [--quick] [--out DIR]

The queries, keys and values of one layer, for packs of 8 rows (60 tokens of a shared instruction, 64 of request, 48 of
answer) with and without the branches of six scores. `dense` is SDPA under the whole mask, what a GPU computes with;
`blocks` is `ppe_lora.student.attention`, what a CPU computes with; `flex` is FlexAttention with the layout's
`mask_mod`, its block mask made anew for every step, once for all layers, and timed by itself. On a GPU it is compiled,
the shape is Mistral-7B's and the type bfloat16; on a CPU the shape is SmolLM2-135M's in float32, and FlexAttention,
which has no backward pass there, is checked and not timed. The difference is the largest one from SDPA in float64,
outputs and gradients, relative to their largest entry.

Rounds are interleaved, medians are reported, raw samples go to DIR/attention_{cpu,cuda}.json, and the last printed line
is one JSON object of headline figures.
"""

import argparse
import json
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from decode_speed import timed
from models import device, device_name
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from ppe_lora.student.attention import attend
from ppe_lora.student.layout import Layout, Run, lay_out, mask_mod

SHARED, REQUEST, ANSWER, SCORES, ROWS = 60, 64, 48, 6, 8
HEADS = {"cuda": (32, 8, 128), "cpu": (9, 3, 64)}
"""Heads, key heads and width of a head, by kind of device."""
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def make_pack(*, branches: bool) -> Layout:
    """Rows behind their instruction; with branches, ten single tokens hang at each of the six scores."""
    runs = [Run([0] * SHARED)]
    for _ in range(ROWS):
        parent, between = 0, ANSWER // SCORES
        for score in range(SCORES):
            runs.append(Run([0] * (between + (REQUEST if score == 0 else 0)), parent))
            parent = len(runs) - 1
            if branches:
                first = len(runs)
                runs += [*(Run([0], parent) for _ in range(9)), Run([0], first)]
    return lay_out(runs)


def ways(layout: Layout) -> tuple[dict[str, Attention], Callable[[], Any]]:
    """The kernels for a pack, and what makes FlexAttention's block mask."""
    where, tokens = device(), len(layout.ids)
    mask = layout.mask.to(where)
    rule = mask_mod(layout.runs.to(where), layout.ancestors.to(where))
    layer = nn.Identity()
    compiled: Any = torch.compile(flex_attention) if where.type == "cuda" else flex_attention
    make_blocks: Any = torch.compile(create_block_mask) if where.type == "cuda" else create_block_mask

    def block_mask() -> Any:
        return make_blocks(rule, None, None, tokens, tokens, device=where.type)

    held = block_mask()

    def blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attend(layer, query, key, value, mask[None, None], layout.blocks)[0].transpose(1, 2)

    return {
        "dense": lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True),
        "blocks": blocks,
        "flex": lambda q, k, v: compiled(q, k, v, block_mask=held, enable_gqa=True),
    }, block_mask


def make_inputs(tokens: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Query, key, value and the gradient of the output."""
    heads, key_heads, width = HEADS[device().type]
    generator = torch.Generator().manual_seed(0)
    shapes = [heads, key_heads, key_heads, heads]
    return [torch.randn(1, n, tokens, width, generator=generator).to(device(), dtype) for n in shapes]


def passes(attention: Attention, inputs: list[torch.Tensor], *, backward: bool = True) -> list[torch.Tensor]:
    """The output, and the gradients of query, key and value."""
    *states, gradient = inputs
    if not backward:
        return [attention(*states)]
    states = [state.detach().requires_grad_() for state in states]
    output = attention(*states)
    return [output.detach(), *torch.autograd.grad(output, states, gradient)]


def difference(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """The largest, relative to the largest entry of each tensor."""
    return max(
        float((one.double() - other).abs().max() / other.abs().max()) for one, other in zip(found, exact, strict=False)
    )


def main() -> None:
    """Measure, print a table, and end with the headline figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds instead of twenty")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
    flex_trains = device().type == "cuda"
    samples: dict[str, dict[str, list[float]]] = {}
    differences: dict[str, dict[str, float]] = {}
    for pack, branches in (("rows", False), ("rows with branches", True)):
        layout = make_pack(branches=branches)
        kernels, block_mask = ways(layout)
        exact = passes(kernels["dense"], make_inputs(len(layout.ids), torch.float64))
        inputs = make_inputs(len(layout.ids), dtype)
        differences[pack] = {
            name: difference(passes(kernel, inputs, backward=flex_trains or name != "flex"), exact)
            for name, kernel in kernels.items()
        }
        if not flex_trains:
            del kernels["flex"]
        samples[pack] = {name: [] for name in [*kernels, "flex, its block mask"]}
        for number in range(1 + (3 if asked.quick else 20)):
            for name, kernel in kernels.items():
                second, _ = timed(lambda kernel=kernel, inputs=inputs: passes(kernel, inputs))
                samples[pack][name] += [second] if number else []  # the first round warms up
            second, _ = timed(block_mask)
            samples[pack]["flex, its block mask"] += [second] if number else []
    median = {pack: {name: statistics.median(some) for name, some in by.items()} for pack, by in samples.items()}
    print(f"| {device_name()}, {dtype} | ms | times dense | largest difference |\n| --- | --- | --- | --- |")
    for pack, by_name in median.items():
        for name, value in by_name.items():
            off = f"{differences[pack][name]:.1e}" if name in differences[pack] else ""
            print(f"| {pack}: {name} | {value * 1000:.2f} | {value / by_name['dense']:.2f} | {off} |")
    headline = {
        "device": device_name(),
        **{
            f"{name}_vs_dense, {pack}": round(by_name[name] / by_name["dense"], 3)
            for pack, by_name in median.items()
            for name in ("blocks", "flex")
            if name in by_name
        },
        "flex_difference": max(by_name["flex"] for by_name in differences.values()),
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    raw = {"headline": headline, "seconds": samples, "differences": differences, "torch": torch.__version__}
    (asked.out / f"attention_{device().type}.json").write_text(json.dumps(raw, indent=2) + "\n")
    print(json.dumps(headline))


if __name__ == "__main__":
    main()
