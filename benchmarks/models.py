"""Models that the speed benchmarks measure: random weights in real shapes, or SmolLM2-135M."""

import platform
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import mistral_common
import torch
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedModel

from ppe_lora.recipe.schema import Student
from ppe_lora.student.base import resolve_base
from ppe_lora.student.load import load_base

VOCABULARY = 32_768
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 64,
    },
    "mistral-7b": {
        "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128,
    },
}  # fmt: skip
MODELS = (*SHAPES, "smollm2-135m")
Quantization = Literal["none", "nf4"]


def device() -> torch.device:
    """Where the benchmarks compute."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """As it is written into results."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + " CPU"


def model_folder(kind: str, work: Path) -> Path:
    """The model's files: of SmolLM2 the installed ones; random ones are made on the device, once, under `work`."""
    if kind not in SHAPES:
        return resolve_base(Student(model=kind))
    folder = work / kind
    if folder.is_dir():
        return folder
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=VOCABULARY, sliding_window=None, tie_word_embeddings=False, **SHAPES[kind])
    with device():
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32
        )
    model.save_pretrained(folder)
    source = Path(mistral_common.__file__).parent / "data" / "mistral_instruct_tokenizer_240323.model.v3"
    for name in ("tokenizer.model.v3", "tokenizer.model"):
        shutil.copy(source, folder / name)
    return folder


def load_model(kind: str, work: Path, quantization: Quantization = "none") -> PreTrainedModel:
    """A fresh base model, loaded as `ppe-lora train` loads it: bfloat16 on a GPU, float32 on a CPU."""
    return load_base(Student(model=kind, quantization=quantization), model_folder(kind, work), device())


def peak_flops(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product, measured: what a step could at most use."""
    size = 8192 if torch.cuda.is_available() else 1024
    one, other = (torch.randn(size, size, device=device(), dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        torch.matmul(one, other)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)
