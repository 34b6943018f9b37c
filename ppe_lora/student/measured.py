"""What a training took, for the leaderboard: its speed and its memory."""

import csv
import math
import resource
import statistics
import sys
from itertools import pairwise
from pathlib import Path

import torch


def rows_per_s(run_dir: Path, rows_per_step: int) -> float | None:
    """Training rows per second over all processes, by the median step of `train_log.csv`.

    Only steps that follow another one of the same epoch count: between epochs lies an evaluation, whose speed is no
    business of training's. The median also passes over checkpoints and over the first step after a resume.

    Args:
        run_dir: Holds the log.
        rows_per_step: Rows of a whole optimizer step, over all processes.

    Returns:
        None where no epoch has two steps.
    """
    with (run_dir / "train_log.csv").open(newline="", encoding="utf-8") as file:
        lines = [(math.ceil(float(line["epoch"])), float(line["seconds"])) for line in csv.DictReader(file)]
    steps = [
        later[1] - sooner[1] for sooner, later in pairwise(lines) if sooner[0] == later[0] and later[1] > sooner[1]
    ]
    return rows_per_step / statistics.median(steps) if steps else None


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this process has held so far: what torch allocated on a GPU, the resident set elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
