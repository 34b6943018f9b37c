"""The frozen base model in memory and the adapter on it. What libraries would only log is an error here."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ppe_lora.errors import ModelError
from ppe_lora.recipe.schema import Lora, Student
from ppe_lora.student.attention import IMPLEMENTATION
from ppe_lora.student.base import weight_files
from ppe_lora.student.foreign import reading_model
from ppe_lora.student.machine import bfloat16_supported, quantization_problem
from ppe_lora.student.tensors import check_finite, open_tensors, weights_remedy

ADAPTER_REMEDY = (
    "put back the epoch's own copy, epochs/<number>/adapter, or train again with `ppe-lora train RECIPE --fresh`"
)
"""What to do about an adapter whose file cannot be used."""
StudentModel = PreTrainedModel | PeftModel
"""A base model, or one with its adapter."""


def load_base(student: Student, folder: Path, device: torch.device | str) -> PreTrainedModel:
    """Load the base model of a recipe onto one device, quantized as asked.

    int8 is LLM.int8 and nf4 is NF4 with double quantization (QLoRA, arXiv 2305.14314), both by bitsandbytes; they work
    on CPU too, slowly. Embeddings, norms and the output head stay in `student.dtype`.

    Args:
        student: Quantization and dtype. "auto" is bfloat16 on a GPU that has it, else float32.
        folder: From `resolve_base`.
        device: Where the whole model goes.

    Raises:
        ModelError: Weights are missing, left over or of another shape (a tied output head may be missing), or the
            machine cannot quantize as asked; or they are cut, or not finite.
    """
    transformers_logging.disable_progress_bar()
    device = torch.device(device)
    weight_files(folder)  # named before transformers reads them
    dtype = compute_dtype(student, device)
    quantization = _quantization(student, device, dtype)
    with reading_model(folder, "a model that transformers can load", weights_remedy(folder)):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            # None would hide the quantization that an exported model names in its own configuration.
            **({"quantization_config": quantization} if quantization else {}),
            device_map={"": device},
            attn_implementation=IMPLEMENTATION,
            ignore_mismatched_sizes=True,  # so that they are reported below with all the rest
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    model, report = loaded
    _check_loaded(report, folder)
    check_finite(_numbers(model), str(folder), f"{weights_remedy(folder)}, or take another one: no training mends it")
    if student.quantization == "nf4":
        _keep_differentiable(model)
    return cast(PreTrainedModel, model)


def compute_dtype(student: Student, device: torch.device) -> torch.dtype:
    """The type of the unquantized weights and of the compute that `student.dtype` means on this device."""
    if student.dtype == "auto":
        return torch.bfloat16 if bfloat16_supported(device) else torch.float32
    return torch.bfloat16 if student.dtype == "bfloat16" else torch.float32


def attach_lora(model: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """Freeze the model and add a fresh LoRA adapter in float32 to its text part. The same seed gives the same start.

    `prepare_model_for_kbit_training` of PEFT is not called for quantized bases: beyond freezing, which PEFT does
    anyway, it holds embeddings and output head in float32 (2 GB more for a vocabulary of 131,072), although the norms
    compute in float32 by themselves and the loss upcasts the logits it needs.

    Args:
        model: From `load_base`; it is changed in place.
        lora: Rank, alpha, targets and variants. "all-linear" is every linear layer of the text model but the output
            head; names match whole dotted suffixes, as in PEFT.
        seed: Of the adapter's random half. Neither the caller's random state nor the device matters to it.

    Raises:
        ModelError: A target name matches nothing, or a target lies outside the text model or is the output head.
    """
    names, count = _targets(model, lora)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float is as good as the int it is annotated with
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=names,
        task_type=TaskType.CAUSAL_LM,
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    layers = sum(isinstance(module, BaseTunerLayer) for module in adapted.modules())
    if layers != count:
        raise ModelError(f"student.lora.targets: expected {count} adapted layers; got {layers}")
    return adapted


def load_adapter(model: PreTrainedModel, folder: Path, trainable: bool = False) -> PeftModel:
    """Put a saved adapter on its base model; the model is changed in place.

    Args:
        model: From `load_base`.
        folder: Holds `adapter_config.json` and `adapter_model.safetensors`.
        trainable: Whether its weights are to be trained further.

    Raises:
        ModelError: The folder holds no adapter, its tensors are not exactly those that the model needs, or they are not
            finite.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: expected an adapter with {name}; got no such file")
    with open_tensors(folder / "adapter_model.safetensors", ADAPTER_REMEDY) as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    # Targets that the model lacks, shapes that differ, configurations that are none.
    with reading_model(folder, "an adapter of this base model", ADAPTER_REMEDY):
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    needed = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(adapted).items()}
    differing = sorted(set(stored.items()) ^ set(needed.items()))
    if differing:
        raise ModelError(
            f"{folder}: expected the tensors of this base model's adapter; got a difference in "
            f"{_some([name for name, _ in differing])}; load it onto the base model it was trained on"
        )
    adapter = ((name, weight) for name, weight in adapted.named_parameters() if "lora_" in name)
    check_finite(adapter, str(folder / "adapter_model.safetensors"), ADAPTER_REMEDY)
    return adapted


def _numbers(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights by name; of a quantized one the scales that it is multiplied by, where NaN and infinity end up."""
    for name, weight in model.named_parameters():
        yield name, weight
        state = getattr(weight, "quant_state", None)
        if state is not None:
            yield name, state.absmax if state.offset is None else state.offset
        scales = getattr(weight, "SCB", None)
        if scales is not None:
            yield name, scales


def trainable_parameters(model: torch.nn.Module) -> int:
    """Number of parameters that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _quantization(student: Student, device: torch.device, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if student.quantization == "none":
        return None
    problem = quantization_problem(student.quantization, device)
    if problem is not None:
        raise ModelError(
            f"student.quantization: expected a machine that can do {student.quantization} on {device}; got: {problem}; "
            "set it to none, or install a bitsandbytes for this device"
        )
    if student.quantization == "int8":
        # It says on every forward pass that it casts its inputs to float16, which is what LLM.int8 is.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _keep_differentiable(model: torch.nn.Module) -> None:
    """Turn off bitsandbytes' CPU inference format.

    Where the CPU has AVX512-BF16, a layer's first forward pass in eval mode repacks its weights for a bfloat16 kernel
    that has no gradient, and they stay so: training after an evaluation would go on with wrong gradients, in silence.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def _check_loaded(report: dict[str, Any], folder: Path) -> None:
    problems = [f"missing: {_some(report['missing_keys'])}"] if report["missing_keys"] else []
    if report["unexpected_keys"]:
        problems.append(f"not part of the model: {_some(report['unexpected_keys'])}")
    if report["mismatched_keys"]:
        shapes = [f"{name} {tuple(stored)} for {tuple(own)}" for name, stored, own in report["mismatched_keys"]]
        problems.append(f"of another shape: {_some(shapes)}")
    problems += report["error_msgs"]
    if problems:
        raise ModelError(
            f"{folder}: expected exactly the weights of the model in config.json; got {'; '.join(problems)}; "
            "download the model again, or correct config.json"
        )


def _targets(model: PreTrainedModel, lora: Lora) -> tuple[list[str], int]:
    """Target names for PEFT, and the number of layers they match."""
    text = {id(module) for module in model.get_decoder().modules()}
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    in_text = [name for name, module in linear.items() if id(module) in text and module is not _head(model)]
    last_names = sorted({name.rpartition(".")[2] for name in in_text})
    names = last_names if lora.targets == "all-linear" else list(lora.targets)
    matched = {name: [full for full in linear if full == name or full.endswith(f".{name}")] for name in names}
    unknown = [name for name in names if not matched[name]]
    if unknown:
        raise ModelError(
            f"student.lora.targets: expected names of linear layers ({', '.join(last_names)}); got {', '.join(unknown)}"
        )
    hit = {full for fulls in matched.values() for full in fulls}
    outside = sorted(hit - set(in_text))
    if outside:
        raise ModelError(
            f"student.lora.targets: expected layers of the text model, without its output head; got {_some(outside)}; "
            "name other layers, or use a text-only model"
        )
    return names, len(hit)


def _head(model: PreTrainedModel) -> torch.nn.Module | None:
    return model.get_output_embeddings()


def _some(names: Any) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")
