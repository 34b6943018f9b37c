"""Smaller weights: the merged model in 8 or 4 bits, and what that costs in answers."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from ppe_lora.artifacts import write_json
from ppe_lora.errors import ModelError
from ppe_lora.evaluation.selection import metric_of
from ppe_lora.export.apart import run_apart
from ppe_lora.export.model_files import write_config
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.schema import Student
from ppe_lora.student.encode import EncodedRow
from ppe_lora.student.load import load_base

CALIBRATION_ROWS = 128
"""Training rows that GPTQ sees."""
Kind = Literal["int8", "nf4", "gptq"]


def write_quantized(
    student: Student, kind: Kind, merged: Path, folder: Path, device: torch.device, rows: Sequence[EncodedRow]
) -> None:
    """Quantize the linear layers of a merged model but its output head, and save it.

    bitsandbytes rounds each weight by itself and saves the weights as they are held in memory; GPTQ looks at what the
    layers answer to some rows, in an environment of its own.

    Args:
        student: The type to compute in.
        kind: int8 and nf4 are bitsandbytes; gptq is 4 bits by llm-compressor, which vLLM loads.
        merged: The merged model.
        folder: Where to write; it must exist.
        device: Where bitsandbytes quantizes.
        rows: Training rows that GPTQ is calibrated on.

    Raises:
        ModelError: This machine cannot quantize so.
    """
    if kind == "gptq":
        _compress(merged, folder, rows)
    else:
        model = load_base(student.model_copy(update={"quantization": kind}), merged, device)
        model.save_pretrained(folder)
    write_config(folder, folder, None)


def compress_python() -> Path:
    """The Python of llm-compressor's environment.

    Raises:
        ModelError: There is none, or this environment could not load what it makes.
    """
    python = Path(os.environ.get("PPE_LORA_COMPRESS_PYTHON", ".venv-compress/bin/python"))
    lacking = None if python.is_file() else str(python)
    if lacking is None and find_spec("compressed_tensors") is None:
        lacking = "package compressed-tensors, which loads what it makes"
    if lacking is not None:
        raise ModelError(
            f"export.quantize: expected the environment of llm-compressor; got no {lacking}; make it with "
            "`make compress`, or name its Python in PPE_LORA_COMPRESS_PYTHON"
        )
    return python.absolute()


def _compress(merged: Path, folder: Path, rows: Sequence[EncodedRow]) -> None:
    python = compress_python()
    with tempfile.TemporaryDirectory(prefix="ppe-compress-") as apart:
        rows_file = Path(apart) / "rows.json"
        write_json(rows_file, {"rows": [row.prompt_ids + row.completion_ids for row in rows]})
        ended = run_apart("compress.py", merged, rows_file, folder, python=python)
    if ended.status:
        raise ModelError(
            f"{merged}: llm-compressor could not quantize it (exit {ended.status}); the last lines it printed:\n"
            f"{ended.last_lines}"
        )
    (folder / "recipe.yaml").unlink(missing_ok=True)  # llm-compressor's own; the model card has ours


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
