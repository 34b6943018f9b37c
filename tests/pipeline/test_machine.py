"""`ppe-lora doctor`: what the machine can do, and whether a recipe fits."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ppe_lora.recipe.schema import Data, Lora, Recipe, Student, Train
from ppe_lora.student import machine
from ppe_lora.student.machine import Size, describe_machine, fits, model_size, quantization_problem
from tests.tiny import tiny_llama, tiny_mistral3


def _recipe(model: str, train: Train | None = None, **student: Any) -> Recipe:
    return Recipe(name="r", data=Data(name="d"), student=Student(model=model, **student), train=train or Train())


def test_the_machine_is_described() -> None:
    facts = {fact.name: fact for fact in describe_machine()}
    assert facts["torch"].value == torch.__version__
    assert facts["bitsandbytes nf4"].value.endswith("works on cpu") or torch.cuda.is_available()
    assert {"python", "CPU", "memory", "mistral-common", "smollm2-135m", "disk"} <= facts.keys()
    assert all(fact.value for fact in facts.values())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantization_is_tried_out(kind: Any) -> None:
    assert quantization_problem(kind, torch.device("cpu")) is None
    assert quantization_problem(kind, torch.device("meta")) is not None


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.3", 7.25e9),
        ("mistralai/Ministral-8B-Instruct-2410", 8.02e9),
        ("mistralai/Ministral-3-3B-Instruct-2512-BF16", 3.4e9),
        ("mistralai/Ministral-3-8B-Instruct-2512-BF16", 8.5e9),
        ("mistralai/Mistral-Small-24B-Instruct-2501", 23.6e9),
        ("smollm2-135m", 0.135e9),
        ("someone/else", None),
    ],
)
def test_sizes_are_known_by_name(model: str, parameters: float | None) -> None:
    size = model_size(Student(model=model))
    assert (size and size.parameters) == parameters


def test_a_local_folder_is_counted(tmp_path: Path) -> None:
    """The vision tower is not part of it; a tied output head counts once."""
    size = model_size(Student(model=str(tiny_mistral3(tmp_path / "m"))))
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 128 + 2 * 32
    assert size == Size(2 * 131_072 * 32 + 2 * layer + 32, 2 * 131_072 * 32)
    folder = tiny_llama(tmp_path / "l")
    size = model_size(Student(model=str(folder)))
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64
    assert size == Size(259 * 64 + 2 * layer + 64, 259 * 64)


def test_the_need_is_the_sum_in_the_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistral-7B in NF4 at rank 16, 8 rows of 200 tokens, by hand: 4.17 + 0.67 + 11.24 + 1.5 GB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine, "bfloat16_supported", lambda device: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=24e9))
    recipe = _recipe("mistralai/Mistral-7B-Instruct-v0.3", quantization="nf4", lora=Lora(rank=16))
    assert fits(recipe) == (
        True,
        "mistralai/Mistral-7B-Instruct-v0.3 (nf4) needs about 17.6 of 24.0 GB of GPU memory: "
        "weights 4.2, adapter 0.7, activations 11.2",
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=12e9))
    assert not fits(recipe).fits
    checkpointed = Train(gradient_checkpointing=True)
    small = _recipe("mistralai/Mistral-7B-Instruct-v0.3", checkpointed, quantization="nf4")
    assert fits(small).fits


def test_an_unknown_size_is_said_to_be_unknown() -> None:
    assert fits(_recipe("someone/else")) == (True, "someone/else: unknown size, so no estimate; load it once to see")
