"""`ppe-lora train` that kills itself: `python dying_train.py step|write N RECIPE`.

`step N` sends SIGKILL in the middle of optimizer step N; `write N` in the middle of the Nth file of a checkpoint,
leaving half of it on disk.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from ppe_lora.cli import main
from ppe_lora.student.trainer import PpeTrainer


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_step(number: int) -> None:
    original = PpeTrainer.training_step

    def training_step(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        if self.state.global_step + 1 == number:
            die()
        return loss

    PpeTrainer.training_step = training_step


def die_while_writing(number: int) -> None:
    original, written = torch.save, []

    def save(content, path, *args, **kwargs):
        original(content, path, *args, **kwargs)
        written.append(path)
        if len(written) == number:
            os.truncate(path, Path(path).stat().st_size // 2)
            die()

    torch.save = save


if __name__ == "__main__":
    mode, number, recipe = sys.argv[1:]
    {"step": die_at_step, "write": die_while_writing}[mode](int(number))
    sys.argv = ["ppe-lora", "train", recipe]
    main()
