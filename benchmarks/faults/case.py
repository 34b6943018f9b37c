"""What every section of the fault matrix returns."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

TRACEBACK = "Traceback (most recent call last)"


class Case(NamedTuple):
    """One accident and what the product did."""

    name: str
    expected: str
    """What is right, in words."""
    observed: str
    """What was seen, in words; numbers with their unit."""
    passed: bool


def ppe(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`ppe-lora ARGUMENTS`, as a user runs it, ended after ten minutes."""
    return subprocess.run(
        [sys.executable, "-m", "ppe_lora", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **(env or {})},
        timeout=600,
    )


def words_only(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether a command refused as it should: status 2, a message, no traceback."""
    return done.returncode == 2 and bool(done.stderr.strip()) and TRACEBACK not in done.stdout + done.stderr


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """The status and the last line a command printed, for the table."""
    lines = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
    return f"status {done.returncode}: {json.dumps(lines[-1][:160], ensure_ascii=False)}"
