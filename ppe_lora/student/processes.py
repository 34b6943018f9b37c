"""The processes of a launch: one by default, several under `accelerate launch`."""

from datetime import timedelta

import torch
from accelerate import PartialState

from ppe_lora.student.launch import check_launch

_PATIENCE = timedelta(days=7)
"""Longest wait for another process. The first one alone asks a teacher, reads hidden states and exports, which takes
hours where torch gives up after ten minutes. A process that dies ends the others by the launcher, not by this."""


def processes() -> PartialState:
    """The state of this launch, started at the first call.

    Without a GPU it must be started for the CPU: accelerate would otherwise see a single process in each of several
    until the trainer starts them anew, with another share of every step.

    Raises:
        RunError: The launcher splits the model over the processes.
    """
    check_launch()
    return PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
