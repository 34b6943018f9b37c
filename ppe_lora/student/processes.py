"""The processes of a launch: one by default, several under `accelerate launch`."""

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """The state of this launch, started at the first call.

    Without a GPU it must be started for the CPU: accelerate would otherwise see a single process in each of several
    until the trainer starts them anew, with another share of every step.
    """
    return PartialState(cpu=not torch.cuda.is_available())
