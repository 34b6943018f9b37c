"""Two processes in one folder: every pair of commands on one run and its data set, at several offsets and states.

Each pair ends in words or in success, and one `run` afterwards ends where an undisturbed one ends: no step twice, no
mixed files, nothing lost.
"""

import csv
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement
from pathlib import Path

from case import TRACEBACK, Case, last_line, ppe_forked
from disk import prepare, result

COMMANDS = {
    "data build": ("data", "build", "run.yaml"),
    "train": ("train", "run.yaml"),
    "train --resume": ("train", "run.yaml", "--resume"),
    "train --fresh": ("train", "run.yaml", "--fresh"),
    "run": ("run", "run.yaml"),
    "evaluate": ("evaluate", "run.yaml"),
    "export": ("export", "run.yaml"),
    "report": ("report", "run"),
}
STATES = ("train", "evaluate", "export", "report")
"""Which stage is next when the two start."""
_OFFSET_S = 0.15
"""The second process starts this much later with each repetition."""


def cases(quick: bool, scratch: Path) -> list[Case]:
    """One case for each pair, of all its repetitions."""
    before, after = scratch / "before", scratch / "after"
    prepare(scratch / "work", before, after)
    right = run_result(after / "report")
    return [
        _pair(pair, 2 if quick else 20, before, scratch / "race", right)
        for pair in combinations_with_replacement(COMMANDS, 2)
    ]


def run_result(work: Path) -> set[tuple[str, str]]:
    """The files of the run and of its data set that two runs write alike, and whether each step is logged once."""
    found = {one for one in result(work) if one[0].startswith(("checkpoints/run/", "data/d/"))}
    found = {one for one in found if not one[0].endswith("data_report.html")}
    with (work / "checkpoints" / "run" / "train_log.csv").open(newline="", encoding="utf-8") as log:
        return found | {("steps", str([line["step"] for line in csv.DictReader(log)]))}


def _pair(pair: tuple[str, str], times: int, before: Path, work: Path, right: set[tuple[str, str]]) -> Case:
    problems: list[str] = []
    statuses: Counter[str] = Counter()
    for repetition in range(times):
        state = STATES[repetition % len(STATES)]
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(before / state, work)
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(ppe_forked, *COMMANDS[pair[0]], cwd=work)
            time.sleep(_OFFSET_S * (repetition // len(STATES)))
            ended = (first, threads.submit(ppe_forked, *COMMANDS[pair[1]], cwd=work))
        for one in (future.result() for future in ended):
            statuses["refused" if "expected no other process at work" in one.stderr else str(one.returncode)] += 1
            if one.returncode not in (0, 2) or TRACEBACK in one.stdout + one.stderr:
                problems.append(f"before {state}: {last_line(one)}")
        done = ppe_forked(*COMMANDS["run"], cwd=work)
        if done.returncode:
            problems.append(f"before {state}, then run: {last_line(done)}")
        elif differs := sorted({name for name, _ in run_result(work) ^ right}):
            problems.append(f"before {state}: differs in {differs}")
    told = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    expected = "success or words, then the result of an undisturbed run"
    return Case(f"{pair[0]} | {pair[1]}", expected, "; ".join([told, *problems]), not problems)
