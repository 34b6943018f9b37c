"""Run the recipes of a folder, each in a process of its own: one after another, or one per GPU.

A process of its own gives back all memory when it ends, and its crash is nobody else's. What is finished is skipped,
an unfinished training is resumed, and a failed run does not stop the others.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from ppe_lora.artifacts import changed_files, read_json
from ppe_lora.console import console, progress
from ppe_lora.errors import Interrupted, RecipeError, RunError
from ppe_lora.evaluation.metrics import METRIC_VERSION
from ppe_lora.evaluation.test_set import TEST_FORMAT
from ppe_lora.interruption import signals_to, stop
from ppe_lora.recipe import Recipe, load_recipe
from ppe_lora.recipe.load import differing_keys

_POLL_S = 0.1
_STOPPED = 130
"""Exit status of a run that a signal stopped."""


class Job(NamedTuple):
    """One process of a sweep."""

    name: str
    command: list[str]
    log: Path


class Planned(NamedTuple):
    """One recipe of a sweep, and the overrides that it was loaded with."""

    path: Path
    recipe: Recipe
    overrides: list[str]


class Outcome(NamedTuple):
    """How a run of the sweep ended."""

    name: str
    ended: Literal["finished", "failed"]
    reason: str = ""
    """Why it failed: what it said last."""


class _Running(NamedTuple):
    job: Job
    process: subprocess.Popen[bytes]
    gpu: str | None


def load_sweep(folder: Path, overrides: Sequence[str], suffix: str = "") -> list[Planned]:
    """The recipes of a folder in the order of their file names.

    Args:
        folder: Holds the recipes.
        overrides: For each of them.
        suffix: Appended to each run's name, so that a sweep with other overrides has run folders of its own.

    Raises:
        RecipeError: There is none, one is wrong (all problems are collected), or two runs would have one name.
    """
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise RecipeError(f"{folder}: expected a folder with recipes (*.yaml); got none")
    named = [override for override in overrides if override.partition("=")[0].strip() == "name"]
    if named:
        raise RecipeError(f"{named[0]}: would give all runs of the sweep one name; use --suffix")
    planned: list[Planned] = []
    problems: list[str] = []
    for path in paths:
        try:
            own = [*overrides]
            if suffix:
                own.append(f"name={load_recipe(path).name}{suffix}")
            planned.append(Planned(path, load_recipe(path, own), own))
        except RecipeError as error:
            problems.append(str(error))
    if problems:
        raise RecipeError("\n".join(dict.fromkeys(problems)))
    by_name: dict[str, Path] = {}
    for path, recipe, _ in planned:
        folder_name = recipe.name.casefold()  # some file systems do not tell A from a
        if by_name.setdefault(folder_name, path) != path:
            raise RecipeError(f"{path}: expected a name of its own; got {recipe.name}, that of {by_name[folder_name]}")
    return planned


def check_gpus(gpus: Sequence[str]) -> None:
    """Raise unless every GPU is there, and named once. A UUID (`GPU-...`, `MIG-...`) is left to the driver.

    Raises:
        RunError: A number is none of a GPU here, or one is given twice.
    """
    if not gpus:
        return
    from ppe_lora.student.machine import gpu_count

    here, named = [str(index) for index in range(gpu_count())], ",".join(gpus)
    if not all(gpu in here or gpu.startswith(("GPU-", "MIG-")) for gpu in gpus):
        found = ",".join(here) or "none"
        raise RunError(f"--gpus: expected numbers of GPUs here, such as 0,1; this machine has {found}; got {named}")
    if len(set(gpus)) < len(gpus):
        raise RunError(f"--gpus: expected every GPU once; got {named}; two runs would share its memory")


def is_finished(recipe: Recipe, data_dir: Path, run_dir: Path) -> bool:
    """Whether every stage of a run is complete, for this recipe, these data, and as today's version evaluates.

    It needs no torch: a finished run costs a sweep nothing. In doubt it says no, and `ppe-lora run` decides itself.
    """
    config, summary = run_dir / "config.yaml", run_dir / "summary.md"
    manifests = [folder / "manifest.json" for folder in (data_dir, run_dir, run_dir / "test", run_dir / "merged")]
    if not all(path.is_file() for path in (config, summary, *manifests)):
        return False
    data, run, test, merged = map(read_json, manifests)
    if any(changed_files(path.parent, made) for path, made in zip(manifests, (data, run, test, merged), strict=True)):
        return False
    same_data = run["inputs"]["dataset_version"] == data["dataset_version"]
    same_metrics = (test["inputs"]["metric_version"], test["inputs"].get("format")) == (METRIC_VERSION, TEST_FORMAT)
    try:
        return same_data and same_metrics and not differing_keys(recipe, load_recipe(config))
    except RecipeError:  # written by an older version
        return False


def run_job(planned: Planned, log_dir: Path) -> Job:
    """The process that runs one recipe."""
    command = [sys.executable, "-m", "ppe_lora", "run", str(planned.path), *planned.overrides]
    return Job(planned.recipe.name, command, log_dir / f"{planned.recipe.name}.log")


def run_jobs(jobs: Sequence[Job], gpus: Sequence[str] = ()) -> list[Outcome]:
    """Run all jobs, at most one per GPU at a time; with no GPU named, one after another on what there is.

    Everything a job prints goes to its log, and to the console behind its name.

    Args:
        jobs: What to run, in this order.
        gpus: What `CUDA_VISIBLE_DEVICES` is set to, one for each job at a time.

    Returns:
        One outcome per job, in the order of the jobs; a failed job does not stop the others.

    Raises:
        Interrupted: SIGINT or SIGTERM came. It was passed on to what was running, which has saved itself.
    """
    waiting = list(jobs)
    free: list[str | None] = list(gpus) or [None]
    running: list[_Running] = []
    told: dict[str, int] = {}
    outcomes: dict[str, Outcome] = {}
    with _stopping(running), progress("sweep", len(jobs)) as advance:
        while waiting or running:
            while waiting and free:
                running.append(_start(waiting.pop(0), free.pop(0)))
            time.sleep(_POLL_S)
            for one in list(running):
                status = one.process.poll()
                told[one.job.name] = _tell(one.job, told.get(one.job.name, 0))
                if status is None:
                    continue
                running.remove(one)
                free.append(one.gpu)
                outcomes[one.job.name] = _outcome(one.job, status)
                console.print(f"{one.job.name}: {outcomes[one.job.name].ended}")
                advance(note=f"{one.job.name} {outcomes[one.job.name].ended}")
    return [outcomes[job.name] for job in jobs]


def _start(job: Job, gpu: str | None) -> _Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment: Mapping[str, str] = os.environ | {"PYTHONUNBUFFERED": "1"}
    if gpu is not None:
        environment = {**environment, "CUDA_VISIBLE_DEVICES": gpu}
    console.print(f"{job.name}: started{'' if gpu is None else f' on GPU {gpu}'}; log in {job.log}")
    with job.log.open("wb") as log:
        # A session of its own: a Ctrl-C would otherwise reach it twice, from the terminal and from here, and twice
        # means to stop without saving.
        process = subprocess.Popen(
            job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
    return _Running(job, process, gpu)


def _tell(job: Job, start: int) -> int:
    """Print the whole lines that a job has logged since `start`; return where the next ones start."""
    with job.log.open("rb") as log:
        log.seek(start)
        new = log.read()
    whole, newline, _ = new.rpartition(b"\n")
    for line in whole.decode(errors="replace").splitlines():
        console.print(f"{job.name} | {line}")
    return start + len(whole) + len(newline)


def _outcome(job: Job, status: int) -> Outcome:
    if status == 0:
        return Outcome(job.name, "finished")
    lines = [line for line in job.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    said = (errors or lines or ["nothing"])[-1].removeprefix("error: ")
    return Outcome(job.name, "failed", said if status in (2, _STOPPED) else f"exit status {status}: {said}")


@contextmanager
def _stopping(running: list[_Running]) -> Iterator[None]:
    """Pass a signal on to everything that runs, once, and wait until it has saved itself."""

    with signals_to(stop):
        try:
            yield
        except KeyboardInterrupt:
            console.print("stopping: what runs saves a checkpoint first; once more stops at once")
            for one in running:
                one.process.terminate()
            try:
                for one in running:
                    one.process.wait()
            except KeyboardInterrupt:
                for one in running:
                    one.process.kill()
            running.clear()
            raise Interrupted("sweep: stopped; the same command continues where it was") from None
        finally:
            for one in running:  # an error of our own must not leave a training behind that nobody watches
                one.process.terminate()
