"""Merge an adapter into its unquantized base: whole weights that plain transformers and serving engines load.

The model is never in memory. Each file of the base is read once, a block of rows at a time; a block is merged in
float32, cast, and appended to the merged file.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ppe_lora.artifacts import files_below, hash_file, hash_json, new_folder, write_json, write_manifest
from ppe_lora.errors import ModelError
from ppe_lora.export.model_files import write_config
from ppe_lora.export.plan import DTYPES, MergePlan, PlannedTensor, plan_merge
from ppe_lora.student.base import weight_files
from ppe_lora.student.load import ADAPTER_REMEDY
from ppe_lora.student.tensors import open_tensors, weights_remedy
from ppe_lora.student.tokenizer_files import save_tokenizer_files

_BLOCK_BYTES = 4 << 20
"""Of a block in float32: small enough to stay in a processor's cache between the steps."""


class MergeReport(NamedTuple):
    """What was merged."""

    layers: int
    """Layers whose weight changed."""
    scales: tuple[float, ...]
    """The distinct factors on B @ A, by the adapter's own configuration: alpha/rank, or alpha/sqrt(rank)."""
    dtype: str
    """Type of the merged weights."""
    parameters: int
    """Parameters of the merged model."""


def merge_inputs(base_folder: Path, adapter_folder: Path, dtype: str) -> dict[str, str]:
    """Everything that decides a merge, for `is_current` and the manifest.

    The base is known by its configuration and the names and sizes of its weight files: hashing the content of tens of
    gigabytes takes longer than the merge.
    """
    weights = {path.name: path.stat().st_size for path in weight_files(base_folder)}
    return {
        "base": hash_json({"config": hash_file(base_folder / "config.json"), "weights": weights}),
        "adapter": hash_file(adapter_folder / "adapter_model.safetensors"),
        "adapter_config": hash_file(adapter_folder / "adapter_config.json"),
        "dtype": dtype,
    }


def merge_adapter(
    base_folder: Path,
    adapter_folder: Path,
    out: Path,
    dtype: Literal["auto", "bfloat16", "float32"] = "auto",
    *,
    inputs: Mapping[str, Any] | None = None,
    save_tokenizer: Callable[[Path], None] | None = None,
    finish: Callable[[Path, MergeReport], Mapping[str, Any]] | None = None,
) -> MergeReport:
    """Write `base + scale * B @ A` as an ordinary model folder, whole or not at all.

    Always merges into the unquantized base, also for an adapter trained on a quantized one: merging in 4 bits would
    round the adapter away. Memory is that of a block of rows and of one layer's A and B, whatever the model's size,
    and the result is rounded once.

    Args:
        base_folder: Unquantized base model (config.json and safetensors).
        adapter_folder: PEFT LoRA adapter; its scale, rsLoRA and DoRA settings are read from it.
        out: The folder to write; an earlier one is replaced when the new one is whole.
        dtype: Type of the merged weights; `auto` is the type the base is stored in.
        inputs: What the manifest says this was made from; by default `merge_inputs` of the arguments.
        save_tokenizer: Writes the tokenizer into a folder; by default the files of the base are copied.
        finish: Called with the merged folder before it takes its final name, to prove it and to add a model card.
            What it returns goes into the manifest, `files` with hashes that it knows; what it raises leaves no `out`.

    Raises:
        ModelError: A folder lacks files, the base lacks weights, the adapter does not fit the base, the merged weights
            are not finite, or there is no room for them.
    """
    plan = plan_merge(base_folder, adapter_folder, dtype)
    with new_folder(out) as folder:
        _check_room(folder, plan)
        write_weights(plan, adapter_folder / "adapter_model.safetensors", folder)
        report = _report(plan)
        write_config(base_folder, folder, None if dtype == "auto" else dtype)
        if (base_folder / "generation_config.json").is_file():
            shutil.copy(base_folder / "generation_config.json", folder)
        if save_tokenizer is None:
            save_tokenizer_files(base_folder, folder)
        else:
            save_tokenizer(folder)
        facts = finish(folder, report) if finish else {}
        made_from = merge_inputs(base_folder, adapter_folder, dtype) if inputs is None else inputs
        facts = {"files": files_below(folder), **facts}
        write_manifest(folder, made_from, merge=report._asdict(), **facts)
    return report


@torch.no_grad()
def write_weights(plan: MergePlan, adapter_file: Path, folder: Path) -> None:
    """Apply a plan: the merged safetensors files and, where there are several, their index.

    Raises:
        ModelError: A merged weight is infinite or not a number.
    """
    with open_tensors(adapter_file, ADAPTER_REMEDY) as adapter:
        for file, tensors in plan.shards.items():
            with open_tensors(file, weights_remedy(file.parent)) as base, (folder / file.name).open("wb") as out:
                out.write(_header(tensors))
                for tensor in tensors:
                    for block in _merged_blocks(tensor, base, adapter):
                        if tensor.delta or tensor.dtype != tensor.stored:
                            _check_finite(block, tensor)
                        out.write(block.reshape(-1).view(torch.uint8).numpy().data)
                out.flush()
                os.fsync(out.fileno())
    if len(plan.shards) > 1 or next(iter(plan.shards)).name != "model.safetensors":
        index = {
            "metadata": {"total_size": sum(tensor.n_bytes for tensor in plan.tensors)},
            "weight_map": {tensor.name: file.name for file, tensors in plan.shards.items() for tensor in tensors},
        }
        write_json(folder / "model.safetensors.index.json", index)


def _header(tensors: list[PlannedTensor]) -> bytes:
    """The beginning of a safetensors file: the length of the JSON that follows, and the JSON.

    The library writes a file from tensors that all are in memory; a merged file is written before they are.
    """
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.n_bytes
        content[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text


def _merged_blocks(tensor: PlannedTensor, base: Any, adapter: Any) -> Iterator[torch.Tensor]:
    """The merged tensor, in its final type, a block of rows at a time."""
    dtype = DTYPES[tensor.dtype]
    if len(tensor.shape) < 2:
        yield base.get_tensor(tensor.name).to(dtype)
        return
    weight_RC = base.get_slice(tensor.name)
    rows, *columns = tensor.shape
    step = max(1, _BLOCK_BYTES // (4 * torch.Size(columns).numel()))
    merge = _row_merger(tensor, adapter)
    for start in range(0, rows, step):
        block_RC = weight_RC[start : start + step]
        yield merge(block_RC, start) if merge else block_RC.to(dtype)


def _row_merger(tensor: PlannedTensor, adapter: Any) -> Callable[[torch.Tensor, int], torch.Tensor] | None:
    """What turns rows of the base's weight, the first of them with its number, into merged ones."""
    delta = tensor.delta
    if delta is None:
        return None
    a_KC, b_RK = adapter.get_tensor(delta.a).float(), adapter.get_tensor(delta.b).float()
    length_R = adapter.get_tensor(delta.magnitude).float() if delta.magnitude else None

    def merge(block_RC: torch.Tensor, start: int) -> torch.Tensor:
        part = slice(start, start + len(block_RC))
        # Not addmm with alpha: PEFT rounds the product, then the scaled product, then the sum.
        merged_RC = (b_RK[part] @ a_KC).mul_(delta.scale).add_(block_RC.float())
        if length_R is not None:
            merged_RC.mul_((length_R[part] / torch.linalg.norm(merged_RC, dim=1))[:, None])
        return merged_RC.to(DTYPES[tensor.dtype])

    return merge


def _check_finite(block: torch.Tensor, tensor: PlannedTensor) -> None:
    # One bad weight makes the sum bad, and a sum is several times faster than looking at each weight.
    if not torch.isfinite(block.sum(dtype=torch.float32)):
        raise ModelError(
            f"{tensor.name}: expected finite merged weights; got infinite ones or none at all (NaN); look at the "
            "weights of the base model, and train with a lower train.learning_rate"
        )


def _check_room(folder: Path, plan: MergePlan) -> None:
    needed = sum(tensor.n_bytes for tensor in plan.tensors)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(
            f"{folder.parent}: expected {needed / 1e6:,.1f} MB of free disk; got {free / 1e6:,.1f}; free some space, "
            "then repeat the command"
        )


def _report(plan: MergePlan) -> MergeReport:
    merged = [tensor for tensor in plan.tensors if tensor.delta]
    return MergeReport(
        layers=len(merged),
        scales=plan.scales,
        dtype=", ".join(sorted({str(DTYPES[tensor.dtype]).removeprefix("torch.") for tensor in merged})),
        parameters=sum(torch.Size(tensor.shape).numel() for tensor in plan.tensors),
    )
