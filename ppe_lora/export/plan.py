"""What a merge will do, decided and checked before a byte is written: plan -> validate -> apply.

Only names, shapes and types are read here. The base is held against the model that its `config.json` describes, built
without weights; the adapter against the layers that its own configuration targets.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ppe_lora.artifacts import read_json
from ppe_lora.errors import ModelError
from ppe_lora.student.base import weight_files
from ppe_lora.student.foreign import reading_model
from ppe_lora.student.tensors import open_tensors, weights_remedy

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""The types of weights, by their names in safetensors files."""
_CAST_TO = {"float32": "F32", "bfloat16": "BF16"}
_ADAPTER_KEY = re.compile(
    r"base_model\.model\.(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?"
)
# What may differ from PEFT's defaults: how the adapter was trained, and what a plan reads.
_UNDERSTOOD = {
    "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_type", "peft_version", "task_type",
    "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern",
}  # fmt: skip


class Delta(NamedTuple):
    """What the adapter adds to a weight: `scale * B @ A`; with DoRA each row is then scaled to its trained length.

    Attributes:
        a: Name in the adapter's file, as are `b` and `magnitude`.
    """

    a: str
    b: str
    magnitude: str | None
    scale: float


class PlannedTensor(NamedTuple):
    """One tensor of the merged model, its shape, and its type in the base and in the merged model (see `DTYPES`)."""

    name: str
    shape: tuple[int, ...]
    stored: str
    dtype: str
    delta: Delta | None

    @property
    def n_bytes(self) -> int:
        """Its size in the merged model."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class MergePlan(NamedTuple):
    """A whole merge: which tensor goes into which file, and what is added to it."""

    shards: dict[Path, list[PlannedTensor]]
    """By file of the base: the tensors in the order in which they lie there. The merged model has the same files."""
    scales: tuple[float, ...]
    """The distinct factors on B @ A."""

    @property
    def tensors(self) -> list[PlannedTensor]:
        """The tensors of all files."""
        return [tensor for tensors in self.shards.values() for tensor in tensors]


def plan_merge(base_folder: Path, adapter_folder: Path, dtype: str) -> MergePlan:
    """Plan `base + scale * B @ A` for every adapted layer.

    Args:
        base_folder: Unquantized base model (config.json and safetensors).
        adapter_folder: PEFT LoRA adapter: plain, rsLoRA or DoRA.
        dtype: `auto` keeps the type each weight is stored in; `bfloat16` or `float32` casts all of them.

    Raises:
        ModelError: A folder lacks files, the base lacks weights or is quantized, or the adapter does not fit the base:
            every tensor of the adapter must have its place, and every place its tensor.
    """
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter_folder / file).is_file():
            raise ModelError(f"{adapter_folder}: expected an adapter; there is no {file} in it")
    stored = {file: read_header(file) for file in weight_files(base_folder)}
    model = _without_weights(base_folder)
    _check_base(base_folder, model, stored)
    deltas = _plan_deltas(adapter_folder, model)
    shards = {
        file: [
            PlannedTensor(name, shape, kept, _CAST_TO.get(dtype, kept), deltas.get(name))
            for name, (kept, shape) in header.items()
        ]
        for file, header in stored.items()
    }
    return MergePlan(shards, tuple(sorted({delta.scale for delta in deltas.values()})))


def read_header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of the tensors of a safetensors file, in the order of their bytes: reading them so reads the file
    once, from its beginning to its end."""
    with open_tensors(file, weights_remedy(file.parent)) as tensors:
        slices = ((name, tensors.get_slice(name)) for name in tensors.offset_keys())
        return {name: (str(one.get_dtype()), tuple(one.get_shape())) for name, one in slices}


def _without_weights(folder: Path) -> PreTrainedModel:
    """The model of a folder with every weight on the meta device: names, shapes and layers, no memory."""
    with reading_model(folder, "a model that transformers knows", weights_remedy(folder)):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if config.to_dict().get("quantization_config"):
        raise ModelError(f"{folder}: expected an unquantized base to merge into; its config has a quantization_config")
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return model


def _check_base(
    folder: Path, model: PreTrainedModel, stored: Mapping[Path, Mapping[str, tuple[str, tuple[int, ...]]]]
) -> None:
    """Whether the files hold exactly the weights of the model, each once, in a type that can be merged into."""
    names = [name for header in stored.values() for name in header]
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if twice:
        raise ModelError(
            f"{folder}: expected every weight once; got several of {_some(twice)}; download the base again"
        )
    found = {name: tensor for header in stored.values() for name, tensor in header.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = set(wanted) - set(found) - set(model.all_tied_weights_keys)
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} weights are missing and would be random: {_some(missing)}; "
            "download the base model again"
        )
    if left := set(found) - set(wanted):
        raise ModelError(f"{folder}: expected weights of {type(model).__name__} only; got {_some(left)}")
    for name, (dtype, shape) in found.items():
        if shape != wanted[name] or dtype not in DTYPES:
            raise ModelError(
                f"{folder}: {name}: expected {' or '.join(DTYPES)} of shape {wanted[name]}; got {dtype} of {shape}; "
                "weights and config.json belong to different models, or the weights are quantized"
            )


def _plan_deltas(folder: Path, model: PreTrainedModel) -> dict[str, Delta]:
    """By name of the base's weight, what the adapter in `folder` adds to it."""
    config = _read_config(folder)
    shapes = {name: shape for name, (_, shape) in read_header(folder / "adapter_model.safetensors").items()}
    parts: dict[str, dict[str, str]] = {}
    for key in shapes:
        if match := _ADAPTER_KEY.fullmatch(key):
            parts.setdefault(match["layer"], {})[match["part"]] = key
    layers = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and check_target_module_exists(config, name) is True
    }
    _refuse_tied(model, layers)
    wanted_parts = ("lora_A", "lora_B") + (("lora_magnitude_vector",) if config.use_dora else ())
    placed = {parts.get(layer, {}).get(part) for layer in layers for part in wanted_parts}
    absent = {f"{layer}.{part}" for layer in layers for part in wanted_parts if part not in parts.get(layer, {})}
    if (homeless := set(shapes) - placed) or absent:
        raise ModelError(
            f"{folder}: the adapter does not fit its base model: {len(homeless)} tensors of the file have no place and "
            f"{len(absent)} are not in the file ({_some(homeless | absent)}); merge it into the base it was trained on"
        )
    deltas = {}
    for layer, (rows, columns) in layers.items():
        rank, scale = _rank_and_scale(config, layer)
        names = parts[layer]
        wanted = {"lora_A": (rank, columns), "lora_B": (rows, rank), "lora_magnitude_vector": (rows,)}
        for part in wanted_parts:
            if shapes[names[part]] != wanted[part]:
                raise ModelError(
                    f"{folder}: the adapter does not fit its base model: {names[part]}: expected shape {wanted[part]}; "
                    f"got {shapes[names[part]]}; merge it into the base it was trained on"
                )
        deltas[f"{layer}.weight"] = Delta(names["lora_A"], names["lora_B"], names.get("lora_magnitude_vector"), scale)
    return deltas


def _read_config(folder: Path) -> LoraConfig:
    """The adapter's configuration, if a merge of B @ A is all that it asks for."""
    content: dict[str, Any] = read_json(folder / "adapter_config.json")
    plain = LoraConfig().to_dict()
    odd = [key for key, value in content.items() if key not in _UNDERSTOOD and value != plain.get(key)]
    if content.get("peft_type") != "LORA" or odd:
        shown = ", ".join(f"{key}={content[key]!r}" for key in odd) or f"peft_type={content.get('peft_type')!r}"
        raise ModelError(
            f"{folder}: expected a plain, rsLoRA or DoRA adapter; got {shown}; merge this one with PEFT, which knows it"
        )
    config: LoraConfig = LoraConfig.from_pretrained(str(folder))
    return config


def _rank_and_scale(config: LoraConfig, layer: str) -> tuple[int, float]:
    rank = (config.rank_pattern or {}).get(get_pattern_key(list(config.rank_pattern or {}), layer), config.r)
    alpha = (config.alpha_pattern or {}).get(
        get_pattern_key(list(config.alpha_pattern or {}), layer), config.lora_alpha
    )
    return rank, alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _refuse_tied(model: PreTrainedModel, layers: Iterable[str]) -> None:
    """An adapter on one end of tied embeddings cannot be merged: the other end would change with it."""
    tied = {name.removesuffix(".weight") for pair in model.all_tied_weights_keys.items() for name in pair}
    if ends := tied & set(layers):
        raise ModelError(
            f"{_some(ends)}: this base ties its input and output embeddings, so an adapter on one of them cannot be "
            "merged; leave it out of student.lora.targets"
        )


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")
