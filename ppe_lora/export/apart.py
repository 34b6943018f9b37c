"""Scripts in a process of their own, which has none of our code, none of a launcher's ranks, and no Hub."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

_SHOWN_LINES = 15


class Ended(NamedTuple):
    """How a script ended: its exit status, and the last lines it printed to its error stream."""

    status: int
    last_lines: str


def run_apart(script: str, *arguments: Path, python: Path | None = None) -> Ended:
    """Run a script of this folder to its end.

    Args:
        script: Its file name.
        arguments: Paths; they are made absolute.
        python: The interpreter; by default this one.
    """
    done = subprocess.run(
        # -P: the script's own folder, whose file names mean something else, stays out of the import path
        [str(python or sys.executable), "-P", str(Path(__file__).with_name(script)), *map(_absolute, arguments)],
        env=_single_process_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    return Ended(done.returncode, last_lines(done.returncode, done.stderr))


def last_lines(status: int, printed: bytes) -> str:
    """What a process that failed said last: of a traceback the error, and of a signal its name."""
    lines = printed.decode(errors="replace").rstrip().splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if starts:
        lines = [line for line in lines[starts[-1] + 1 :] if not line.startswith(" ")]
    if status < 0:
        lines.append(
            f"ended by {signal.Signals(-status).name}" + (", often for lack of memory" if status == -9 else "")
        )
    return "\n".join(lines[-_SHOWN_LINES:])


def _absolute(path: Path) -> str:
    return str(path.resolve())


def _single_process_environment() -> dict[str, str]:
    """Our environment without what a launcher sets for its ranks, and never the Hub."""
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in launcher and not name.startswith(("ACCELERATE_", "TORCHELASTIC_", "FSDP_"))
    }
    return {**kept, "HF_HUB_OFFLINE": "1"}
