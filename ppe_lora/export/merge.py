"""Merge an adapter into its unquantized base: whole weights that plain transformers and serving engines load."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ppe_lora.artifacts import hash_file, hash_json, write_manifest
from ppe_lora.errors import ModelError
from ppe_lora.student.base import weight_files
from ppe_lora.student.tokenizer_files import save_tokenizer_files


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
    save_tokenizer: Callable[[Path], None] | None = None,
    finish: Callable[[Path, MergeReport], Mapping[str, Any]] | None = None,
) -> MergeReport:
    """Write `base + scale * B @ A` as an ordinary model folder, whole or not at all.

    Always merges into the unquantized base, also for an adapter trained on a quantized one: merging in 4 bits would
    round the adapter away. The base is held in its stored type and one layer at a time is merged in float32 and then
    cast, so memory is that of the base plus one layer, and the result is rounded once.

    Args:
        base_folder: Unquantized base model (config.json and safetensors).
        adapter_folder: PEFT LoRA adapter; its scale, rsLoRA and DoRA settings are read from it.
        out: The folder to write; an earlier one is replaced when the new one is whole.
        dtype: Type of the merged weights; `auto` is the type the base is stored in.
        save_tokenizer: Writes the tokenizer into a folder; by default the files of the base are copied.
        finish: Called with the merged folder before it takes its final name, to prove it and to add a model card.
            What it returns goes into the manifest; what it raises leaves no `out`.

    Raises:
        ModelError: A folder lacks files, the base lacks weights, or the adapter does not fit the base.
    """
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter_folder / file).is_file():
            raise ModelError(f"{adapter_folder}: expected an adapter; there is no {file} in it")
    inputs = merge_inputs(base_folder, adapter_folder, dtype)
    with _whole_or_nothing(out) as folder:
        report = _merge_into(base_folder, adapter_folder, folder, dtype)
        if save_tokenizer is None:
            save_tokenizer_files(base_folder, folder)
        else:
            save_tokenizer(folder)
        facts = finish(folder, report) if finish else {}
        files = sorted(path.name for path in folder.iterdir())
        write_manifest(folder, inputs, **{"merge": report._asdict(), "files": files, **facts})
    return report


def _merge_into(base_folder: Path, adapter_folder: Path, folder: Path, dtype: str) -> MergeReport:
    """Merge and save the weights; the model's memory is free again when this returns."""
    transformers_logging.disable_progress_bar()
    base = _load_base(base_folder)
    target_dtype = base.dtype if dtype == "auto" else getattr(torch, dtype)
    wrapped = _attach(base, adapter_folder)
    layers = {name: module for name, module in wrapped.named_modules() if isinstance(module, LoraLayer)}
    _refuse_tied(base, layers)
    for layer in layers.values():
        _merge_layer(layer, target_dtype)
    scales = {float(scale) for layer in layers.values() for scale in layer.scaling.values()}
    merged = wrapped.unload()
    for parameter in merged.parameters():
        parameter.data = parameter.data.to(target_dtype)
    merged.save_pretrained(folder)
    return MergeReport(
        layers=len(layers),
        scales=tuple(sorted(scales)),
        dtype=str(target_dtype).removeprefix("torch."),
        parameters=sum(parameter.numel() for parameter in merged.parameters()),
    )


@torch.no_grad()
def _merge_layer(layer: Any, dtype: torch.dtype) -> None:
    weight = layer.get_base_layer().weight
    weight.data = weight.data.float()
    layer.merge(safe_merge=True)  # refuses NaN and infinity
    weight.data = weight.data.to(dtype)


def _load_base(folder: Path) -> PreTrainedModel:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", local_files_only=True, output_loading_info=True
    )
    model, info = loaded
    if getattr(model, "is_quantized", False) or model.config.to_dict().get("quantization_config"):
        raise ModelError(f"{folder}: expected an unquantized base to merge into; its config has a quantization_config")
    if info["missing_keys"]:
        shown = ", ".join(sorted(info["missing_keys"])[:5])
        raise ModelError(
            f"{folder}: {len(info['missing_keys'])} weights are missing and would be random: {shown}; "
            "download the base model again"
        )
    return model


def _attach(base: PreTrainedModel, adapter_folder: Path) -> PeftModel:
    try:
        # autocast: the adapter keeps the float32 it was trained in, whatever the type of the base
        wrapped = PeftModel.from_pretrained(base, str(adapter_folder), autocast_adapter_dtype=True)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{adapter_folder}: the adapter does not fit its base model: {error}") from error
    with safe_open(adapter_folder / "adapter_model.safetensors", framework="pt") as file:
        stored = {key for key in file.keys() if "lora_" in key}  # noqa: SIM118
    expected = {key for key in get_peft_model_state_dict(wrapped, save_embedding_layers=False) if "lora_" in key}
    if stored != expected:
        odd = ", ".join(sorted(stored ^ expected)[:5])
        raise ModelError(
            f"{adapter_folder}: the adapter does not fit its base model: {len(stored - expected)} tensors of the file "
            f"have no place and {len(expected - stored)} are not in the file ({odd}); merge it into the base it was "
            "trained on"
        )
    return wrapped


def _refuse_tied(base: PreTrainedModel, layers: Mapping[str, Any]) -> None:
    """An adapter on one end of tied embeddings cannot be merged: the other end would change with it."""
    output = base.get_output_embeddings()
    inputs = base.get_input_embeddings()
    ends = [layer for layer in (output, inputs) if isinstance(layer, LoraLayer)]
    if ends and _weight(output) is _weight(inputs):
        named = ", ".join(name for name, layer in layers.items() if layer in ends)
        raise ModelError(
            f"{named}: this base ties its input and output embeddings, so an adapter on one of them cannot be merged; "
            "leave it out of student.lora.targets"
        )


def _weight(module: Any) -> Any:
    return module.get_base_layer().weight if isinstance(module, LoraLayer) else module.weight


@contextmanager
def _whole_or_nothing(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name at the end; an exception leaves `out` as it was."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{out.name}.*.tmp"):
        shutil.rmtree(left)  # of a merge that was killed
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
