"""SIGKILL at moments all over `run`, then `run` again: the result of an undisturbed run, and no lock left behind."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

from case import Case, last_line, ppe_forked
from disk import prepare
from races import run_result

_RUN = ("run", "run.yaml")


def cases(quick: bool, scratch: Path) -> list[Case]:
    """One case for each moment."""
    before, after, work = scratch / "before", scratch / "after", scratch / "killed"
    prepare(scratch / "work", before, after)
    right = run_result(after / "report")
    shutil.copytree(before / "data build", work)
    started = time.monotonic()
    ppe_forked(*_RUN, cwd=work)
    whole_s = time.monotonic() - started
    moments = 4 if quick else 20
    found = []
    for moment in range(moments):
        shutil.rmtree(work)
        shutil.copytree(before / "data build", work)
        found.append(_killed(whole_s * (moment + 0.5) / moments, work, right))
    return found


def _killed(after_s: float, work: Path, right: set[tuple[str, str]]) -> Case:
    def kill_later() -> None:
        timer = threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()

    first = ppe_forked(*_RUN, cwd=work, before=kill_later)
    second = ppe_forked(*_RUN, cwd=work)
    problems = [f"then {last_line(second)}"] if second.returncode else []
    if not problems and (differs := sorted({name for name, _ in run_result(work) ^ right})):
        problems = [f"differs in {differs}"]
    observed = f"ended with {first.returncode}, then with {second.returncode}"
    expected = "the result of an undisturbed run"
    return Case(f"killed after {after_s:.2f} s", expected, "; ".join([observed, *problems]), not problems)
