"""Files of tensors, opened in one place: what is cut, empty, of another kind or not finite is named with a remedy."""

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ppe_lora.boundary import check_file
from ppe_lora.errors import ModelError

_SHOWN = 5


OVERFLOWS = (
    "its weights are finite, so it overflows on the way: set student.dtype to float32, or train with a lower "
    "train.learning_rate"
)
"""What to do about outputs that are NaN or infinite."""


class NotFinite(ModelError):
    """Numbers of a model are NaN or infinite."""


def open_tensors(file: Path, remedy: str) -> Any:
    """A safetensors file as `safe_open` gives it, a context manager; its size is held against its header.

    Args:
        file: The file.
        remedy: What to do about a broken one.

    Raises:
        ModelError: It is missing, cut, or no safetensors file.
    """
    check_file(file)
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise _broken(file, "a whole safetensors file", error, remedy) from error


def weights_remedy(folder: Path) -> str:
    """What to do about a model folder whose weights cannot be used."""
    if (folder / "manifest.json").is_file():  # written by us: a merged model, or a base that was rewritten
        return f"delete {folder} and repeat the command that wrote it"
    return "download the model again, or copy it here again"


def read_arrays(file: Path, names: Iterable[str], what: str, remedy: str) -> dict[str, np.ndarray]:
    """Arrays of an npz file, by name.

    Args:
        file: The file.
        names: The arrays it has to hold.
        what: What it is, for an error: `a head`.
        remedy: What to do about a broken one.

    Raises:
        ModelError: It is missing, cut, holds other arrays, or numbers that are not finite.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise _broken(file, what, error, remedy) from error
    check_finite(((name, torch.from_numpy(array)) for name, array in arrays.items()), str(file), remedy)
    return arrays


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], where: str, remedy: str) -> None:
    """Raise unless all numbers are finite. Each tensor is read once, and the device is waited for once.

    Args:
        tensors: With their names; those of whole numbers pass.
        where: What holds them.
        remedy: What to do.

    Raises:
        NotFinite: They are not; the tensors are named.
    """
    names, ends = [], []
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            names.append(name)
            ends.append(torch.stack(torch.aminmax(tensor.detach())).float().isfinite().all())
    found = [name for name, finite in zip(names, torch.stack(ends).tolist() if ends else [], strict=True) if not finite]
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise NotFinite(
            f"{where}: expected finite numbers; got NaN or infinity in {', '.join(found[:_SHOWN])}{more}; {remedy}"
        )


def _broken(file: Path, what: str, error: Exception, remedy: str) -> ModelError:
    said = (str(error) or type(error).__name__).splitlines()[0]
    size = f"{file.stat().st_size} bytes, " if file.is_file() else ""
    return ModelError(f"{file}: expected {what}; got {size}{said}; {remedy}")
