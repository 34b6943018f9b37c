"""What every section of the fault matrix returns."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
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


def ppe_forked(
    *arguments: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    before: Callable[[], None] = lambda: None,
) -> subprocess.CompletedProcess[str]:
    """`ppe` in a fork of this process, which has the libraries loaded already: seconds less for each of many cases.

    Args:
        arguments: Of the command line.
        cwd: The working folder.
        env: Added to the environment.
        before: Called in the fork, for limits and the like.
    """
    import ppe_lora.export.stage
    import ppe_lora.student.training  # noqa: F401
    from ppe_lora.cli import main

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            status: object = 1
            try:
                signal.alarm(600)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.chdir(cwd)
                os.environ.update(env or {})
                tempfile.tempdir, sys.argv = None, ["ppe-lora", *arguments]
                before()
                main()
            except SystemExit as end:
                status = end.code or 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status if isinstance(status, int) else 1)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(arguments, ended, out.read(), err.read())


def words_only(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether a command refused as it should: status 2, a message, no traceback."""
    return done.returncode == 2 and bool(done.stderr.strip()) and TRACEBACK not in done.stdout + done.stderr


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """The status and the last line a command printed, for the table."""
    lines = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
    return f"status {done.returncode}: {json.dumps(lines[-1][:160], ensure_ascii=False)}"
