"""What a leaderboard says about the cost of a training."""

import resource
from pathlib import Path

import pytest
import torch

from ppe_lora.student.callbacks import LOG_COLUMNS
from ppe_lora.student.measured import peak_memory_bytes, rows_per_s


def write_log(folder: Path, *lines: tuple[float, float]) -> None:
    """A log of steps, each with its epoch and the seconds since the process started."""
    rows = [f"{step},{epoch},1.0,0.1,0.5,{seconds}" for step, (epoch, seconds) in enumerate(lines, 1)]
    (folder / "train_log.csv").write_text("\n".join([",".join(LOG_COLUMNS), *rows]) + "\n")


def test_rows_per_second_leave_the_evaluations_out(tmp_path):
    """Steps of 2 s, and 100 s of decoding between the epochs: 16 rows in 2 s, not 16 rows in 27 s."""
    write_log(tmp_path, (0.25, 5), (0.5, 7), (0.75, 9), (1.0, 11), (1.25, 113), (1.5, 115), (1.75, 117), (2.0, 119))
    assert rows_per_s(tmp_path, 16) == pytest.approx(8.0)


def test_rows_per_second_after_a_resume(tmp_path):
    """The clock starts anew in the middle of an epoch: no negative step."""
    write_log(tmp_path, (0.25, 5), (0.5, 7), (0.75, 3), (1.0, 5))
    assert rows_per_s(tmp_path, 16) == pytest.approx(8.0)


def test_one_step_an_epoch_has_no_speed(tmp_path):
    write_log(tmp_path, (1.0, 5), (2.0, 50))
    assert rows_per_s(tmp_path, 16) is None


def test_peak_memory_is_in_bytes():
    """ru_maxrss is in KiB on Linux: taken for bytes, every model would fit a telephone."""
    assert peak_memory_bytes(torch.device("cpu")) == pytest.approx(
        1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, rel=0.1
    )
    assert peak_memory_bytes(torch.device("cpu")) > 50e6
