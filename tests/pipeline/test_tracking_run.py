"""Trackers beside real trainings: whatever they do, training does not wait for them and the run folder is whole."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ppe_lora import pipeline
from ppe_lora.recipe import load_recipe
from ppe_lora.recipe.load import differing_keys
from ppe_lora.student.training import train_inputs
from ppe_lora.tracking.follower import Followers, Place
from tests.command import ppe_lora
from tests.runs import make_data, make_recipe
from tests.tracker_server import broken_server, trace_server
from tests.wandb_file import read_wandb_file
from tests.wandb_server import wandb_server

REPOSITORY = Path(__file__).parents[2]
RUN = Path("checkpoints") / "run"
STEPS = 12
LATER_STAGES = (
    "test/", "merged/", "adapter/", "worst_cases.csv", "calibration.json", "head.npz", "summary.md", "report.html",
    "test_rows.json",
)  # fmt: skip
SECTIONS = (
    "train: {epochs: 2, rows_per_step: 4, rows_per_micro_step: 4, learning_rate: 3e-3}",
    "evaluate: {gate: 0.0, latency_rows: 1}",
    "export: {verify_rows: 2}",
)
TRACK = "track: {wandb: {project: ppe}, weave: {project: team/ppe}}"
TRACKERS = ("wandb", "weave")
LONGEST_WAIT_S = 1.0


def prepare(folder: Path, speaker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `folder` a working directory with a data set and a recipe that is tracked."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(pipeline, "build_data", lambda recipe: None)
    make_data(folder / "data" / "d")
    make_recipe(folder, speaker, *SECTIONS, TRACK)


@pytest.fixture
def here(speaker, tmp_path, monkeypatch) -> Path:
    prepare(tmp_path, speaker, monkeypatch)
    return tmp_path


class Watch(NamedTuple):
    """Every second that the training's thread spends in tracking, and the processes that were started."""

    waited_s: list[float]
    processes: list[subprocess.Popen[bytes]]


@contextlib.contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    watch = Watch([], [])

    def timed(name: str) -> None:
        original = getattr(Followers, name)

        def measured(self, *arguments):
            started = time.perf_counter()
            try:
                return original(self, *arguments)
            finally:
                watch.waited_s.append(time.perf_counter() - started)
                watch.processes.extend(one for one in self._running.values() if one not in watch.processes)

        monkeypatch.setattr(Followers, name, measured)

    for name in ("__init__", "start", "__enter__", "__exit__"):
        timed(name)
    yield watch
    for process in watch.processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def whole(run: Path) -> set[str]:
    """Everything in a run folder but what trackers have there."""
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "tracking" not in path.parts}


def steps_of(folder: Path) -> list[int]:
    """The steps in the one `.wandb` file of a working directory's run."""
    (path,) = (folder / RUN).rglob("*.wandb")
    return [line["_step"] for line in read_wandb_file(path).history]


def wait_for_followers(folder: Path) -> None:
    """Wait for processes that another process started: they hold a lock as long as they work."""
    for name in TRACKERS:
        with (Place(folder / RUN, name).folder / f"{name}.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)


@pytest.fixture(scope="module")
def offline(speaker, tmp_path_factory) -> Path:
    """The working directory of a run that was tracked with no key, as W&B and Weave left it."""
    folder = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as monkeypatch, watched(monkeypatch) as watch:
        prepare(folder, speaker, monkeypatch)
        assert ppe_lora("run", "run.yaml") == 0
        assert sum(watch.waited_s) < LONGEST_WAIT_S
        assert len(watch.processes) == len(TRACKERS)
        for process in watch.processes:
            assert process.wait(timeout=200) == 0, [Place(RUN, name).log.read_text() for name in TRACKERS]
    return folder


@pytest.mark.parametrize("how", ["refuses", "hangs", "500"])
def test_a_broken_tracker_costs_training_less_than_a_second(here, offline, monkeypatch, capsys, how):
    """A tracker that refuses, hangs or fails has stopped or slowed many a training over night."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with broken_server(how) as url, watched(monkeypatch) as watch:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WF_TRACE_SERVER_URL", url)
        assert ppe_lora("train", "run.yaml") == 0
        assert capsys.readouterr().out.count("warning: W&B") <= 1
        print(f"{how}: waited {sum(watch.waited_s):.4f} s for trackers")
        assert len(watch.processes) == len(TRACKERS)
        assert sum(watch.waited_s) < LONGEST_WAIT_S
        assert whole(here / RUN) == {name for name in whole(offline / RUN) if not name.startswith(LATER_STAGES)}


def test_an_offline_run_has_all_steps_files_and_traces(offline):
    """Followed while it grows, not read at its end: nothing may be sent before it is known, or twice."""
    assert steps_of(offline) == list(range(1, STEPS + 1))
    (path,) = (offline / RUN).rglob("*.wandb")
    found = read_wandb_file(path)
    assert len([line for line in found.history if "eval/mse_norm" in line]) == 2
    assert set(found.artifacts) == {"d", "run-adapter", "run-eval_predictions", "run-worst_cases", "run-merged"}
    assert len(list((offline / RUN / "tracking" / "weave").glob("*.jsonl"))) == 3


def test_track_sync_sends_an_offline_run_once(offline, tmp_path, monkeypatch, capsys):
    shutil.copytree(offline, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with wandb_server() as (url, sent), trace_server() as (traces_url, traced):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WF_TRACE_SERVER_URL", traces_url)
        for _ in range(2):
            assert ppe_lora("track", "sync", str(RUN)) == 0
            assert capsys.readouterr().out == f"W&B: has everything of {RUN}\nWeave: has everything of {RUN}\n"
    (synced,) = sent.runs.values()
    assert [line["_step"] for line in synced.history] == list(range(1, STEPS + 1))
    answered = [call for call in traced.calls.values() if "answer_request" in call["op_name"]]
    assert len(answered) == 8 + 8 + 6
    assert traced.repeated_calls == traced.dangling == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_resumed_run_is_tracked_as_one_run(speaker, tmp_path):
    """Killed in the middle of an epoch, then resumed: the same run, every step once."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        prepare(tmp_path, speaker, monkeypatch)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    dying = [sys.executable, str(REPOSITORY / "tests" / "pipeline" / "dying_train.py"), "step", "9", "run.yaml"]
    killed = subprocess.run(dying, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    wait_for_followers(tmp_path)
    run_id = Place(tmp_path / RUN, "wandb").run_id.read_text()
    assert steps_of(tmp_path) == list(range(1, 9))
    resume = [sys.executable, "-m", "ppe_lora", "train", "run.yaml", "--resume"]
    resumed = subprocess.run(resume, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800)
    assert resumed.returncode == 0, resumed.stderr
    wait_for_followers(tmp_path)
    assert steps_of(tmp_path) == list(range(1, STEPS + 1))
    (path,) = (tmp_path / RUN).rglob("*.wandb")
    assert set(read_wandb_file(path).run_ids) == {run_id}


def test_turning_tracking_on_is_no_other_training(here):
    """A resume with tracking turned on must not be refused as another experiment."""
    tracked = load_recipe(Path("run.yaml"))
    untracked = load_recipe(Path("run.yaml"), ["track={}"])
    assert train_inputs(tracked, Path("data/d")) == train_inputs(untracked, Path("data/d"))
    assert all(key.startswith("track.") for key in differing_keys(tracked, untracked))


def test_a_folder_that_is_no_run_is_told(here, monkeypatch, capsys):
    assert ppe_lora("track", "sync", "checkpoints/none") == 2
    assert capsys.readouterr().err == (
        "error: checkpoints/none: expected a run (its folder, or its name in checkpoints/); got none; finished "
        "runs: none\n"
    )
