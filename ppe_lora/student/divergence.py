"""A training that has diverged, found by the first number that is none, before it reaches a file."""

import math
from pathlib import Path

import torch

from ppe_lora.errors import RunError
from ppe_lora.student.tensors import NotFinite, check_finite

_REMEDY = "lower train.learning_rate, and begin again with `ppe-lora train RECIPE --fresh`"
_OF_THE_BASE = (
    "set student.dtype to float32, whose numbers are larger than those of 16 bits, or take another base model: before "
    "the first step there is nothing of a training in it"
)


class Diverged(RunError):
    """Training has come to numbers that are none; what was saved before is whole."""

    def __init__(self, fact: str, remedy: str = _REMEDY) -> None:
        super().__init__(f"{fact}. Training has diverged: {remedy}")
        self.fact = fact
        self.remedy = remedy


def check_step(log: Path, step: int, loss: float, gradient_norm: float | None) -> None:
    """Look at what one optimizer step is logged with.

    Args:
        log: Where it goes.
        step: Its number, from 1.
        loss: Mean loss before the step.
        gradient_norm: Before clipping.

    Raises:
        RunError: The loss of the first step is no number: it is the base model's.
        Diverged: The loss or the gradient is no number.
    """
    if not math.isfinite(loss) and step == 1:
        raise RunError(f"{log}: expected a finite loss of the base model; got {loss} at step 1; {_OF_THE_BASE}")
    if not math.isfinite(loss):
        raise Diverged(f"{log}: expected a finite loss; got {loss} at step {step}")
    if gradient_norm is not None and not math.isfinite(gradient_norm):
        raise Diverged(f"{log}: expected a finite gradient; got a norm of {gradient_norm} at step {step}")


def check_adapter(model: torch.nn.Module, where: Path, step: int) -> None:
    """Look at the trained weights before they are written or judged.

    Args:
        model: Whose trained parameters to look at.
        where: The run.
        step: The last one.

    Raises:
        Diverged: They are not finite.
    """
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    try:
        check_finite(trained, f"{where}: the adapter after step {step}", "")
    except NotFinite as error:
        raise Diverged(str(error).removesuffix("; ")) from None
