"""What a launcher may decide, and what it may not: the recipe and this package know better."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch

from ppe_lora import pipeline
from ppe_lora.errors import RunError
from ppe_lora.recipe import load_recipe
from ppe_lora.student import processes as processes_module
from ppe_lora.student.launch import check_launch
from ppe_lora.student.processes import processes
from ppe_lora.student.trainer import sft_config

DEMO = Path(__file__).parents[2] / "recipes" / "demo.yaml"
REFUSAL = (
    "accelerate launch: expected processes that each hold the whole model; got {}, which splits it; use "
    "configs/accelerate/multi_gpu.yaml or one GPU, with student.quantization: nf4 or a smaller model where a card does "
    "not hold it"
)


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP"),
        ("ACCELERATE_USE_FSDP", "1", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "a parallelism_config"),
    ],
)
def test_a_model_split_over_processes_is_refused_before_anything_is_made(monkeypatch, variable, value, name):
    """It hung at the end of the first epoch; `run` must say so before a teacher is paid for rows."""
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(pipeline, "build_data", lambda recipe: pytest.fail("built the data first"))
    for start in (check_launch, processes, lambda: pipeline.run(load_recipe(DEMO))):
        with pytest.raises(RunError) as error:
            start()
        assert str(error.value) == REFUSAL.format(name)


def test_a_launch_that_does_not_split_is_accepted(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    check_launch()


def test_other_processes_wait_for_the_first_one(monkeypatch):
    """It reads hidden states or asks a teacher for longer than the ten minutes after which torch ends the others."""
    monkeypatch.setattr(processes_module, "PartialState", lambda **settings: settings)
    assert processes()["timeout"] > timedelta(days=1)


@pytest.mark.parametrize("native", [True, False])
def test_autocast_is_for_cards_that_have_bfloat16(monkeypatch, native):
    """Cards before Ampere emulate it, several times slower than the float32 that `auto` means there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    monkeypatch.setattr("ppe_lora.student.trainer.SFTConfig", Settings)
    config = sft_config(load_recipe(DEMO), Path("run"), 1, 2)
    assert (config.bf16, config.mixed_precision) == (native, "bf16" if native else "no")


class Settings:
    """Stands for TRL's configuration, which asks the GPU that is not there."""

    def __init__(self, **settings):
        vars(self).update(settings)


def test_a_launchers_fp16_does_not_hold(monkeypatch):
    """`accelerate launch --mixed_precision fp16` made gradients overflow, whatever student.dtype said."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert sft_config(load_recipe(DEMO), Path("run"), 1, 2).mixed_precision == "no"


def test_a_warmup_of_all_steps_is_one_of_all_steps():
    """The trainer takes 1 as one step, and a share below it as a share."""
    config = sft_config(load_recipe(DEMO, ["train.warmup=1.0"]), Path("run"), 1, 2)
    assert config.get_warmup_steps(1000) == 1000
    config = sft_config(load_recipe(DEMO, ["train.warmup=0.05"]), Path("run"), 1, 2)
    assert config.get_warmup_steps(1000) == 50
