"""Smaller weights: the merged model in 8 or 4 bits by bitsandbytes, and what that costs in answers."""

from collections.abc import Mapping
from pathlib import Path

import torch

from ppe_lora.errors import ModelError
from ppe_lora.evaluation.selection import metric_of
from ppe_lora.export.model_files import write_config
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.schema import Student
from ppe_lora.student.load import load_base


def write_quantized(student: Student, merged: Path, folder: Path, device: torch.device) -> None:
    """Quantize a merged model and save its weights as they are held in memory: embeddings, norms and the output head
    stay as they were.

    Args:
        student: `quantization` says how.
        merged: The merged model.
        folder: Where to write; it must exist.
        device: Where to quantize.

    Raises:
        ModelError: This machine cannot quantize so.
    """
    model = load_base(student, merged, device)
    model.save_pretrained(folder)
    write_config(folder, folder, None)


def check_loss(recipe: Recipe, before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """What quantization did to the served read-out's mse_norm, in words.

    Raises:
        ModelError: It rose by a larger share than `export.max_loss`, or no answer was accepted.
    """
    name = metric_of(recipe.evaluate.read_out)
    kind, allowed = recipe.export.quantize, recipe.export.max_loss
    if name not in before or name not in after:
        raise ModelError(f"export.quantize: expected accepted answers of the {kind} model; got none; set it to none")
    change = after[name] / before[name] - 1 if before[name] else float(after[name] > 0)
    told = f"{name} {before[name]:.5f} -> {after[name]:.5f} ({change:+.1%})"
    if change > allowed:
        raise ModelError(
            f"export.quantize: expected {kind} weights to lose at most {allowed:.1%}; got {told}; no quantized model "
            "is kept: choose int8 or none, or raise export.max_loss"
        )
    return told
