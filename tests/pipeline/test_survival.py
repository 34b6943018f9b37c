"""A run that is killed, interrupted or out of disk loses nothing and ends where an uninterrupted one ends."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ppe_lora.artifacts import read_json, write_json, write_manifest
from ppe_lora.errors import Interrupted, ModelError, RunError, WorldError
from ppe_lora.recipe import load_recipe
from ppe_lora.student import callbacks
from ppe_lora.student.callbacks import EpochEvaluation
from ppe_lora.student.checkpoints import epoch_folders
from ppe_lora.student.trainer import PpeTrainer
from ppe_lora.student.training import train
from tests.runs import make_data, make_recipe

REPOSITORY = Path(__file__).parents[2]
SECTIONS = (
    "train: {epochs: 2, rows_per_step: 8, rows_per_micro_step: 4, learning_rate: 5e-3, checkpoint_minutes: 0.0001, "
    "objective: {head: 1}}",
    "evaluate: {gate: 0.5, latency_rows: 0}",
)


@pytest.fixture(scope="module")
def whole(speaker, tmp_path_factory) -> Path:
    """The working directory of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    prepare(folder, speaker)
    train(load_recipe(folder / "run.yaml"), folder / "data" / "d", folder / "checkpoints" / "run")
    return folder


def prepare(folder: Path, speaker: Path) -> None:
    make_data(folder / "data" / "d", train=52)
    make_recipe(folder, speaker, *SECTIONS)


def ppe_lora(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=250
    )


def assert_same_result(one: Path, other: Path) -> None:
    """Same adapters, decoded answers, metrics and log, to the last bit."""
    for epoch in ("001", "002"):
        first, second = (
            load_file(run / "epochs" / epoch / "adapter" / "adapter_model.safetensors") for run in (one, other)
        )
        assert first.keys() == second.keys()
        assert all(first[name].equal(second[name]) for name in first)
        for name in ("eval_predictions.jsonl", "eval_metrics.json"):
            assert (one / "epochs" / epoch / name).read_text() == (other / "epochs" / epoch / name).read_text()
    logs = [[line.rsplit(",", 1)[0] for line in (run / "train_log.csv").read_text().split()] for run in (one, other)]
    assert logs[0] == logs[1]
    assert (one / "best" / "eval_metrics.json").read_text() == (other / "best" / "eval_metrics.json").read_text()


@pytest.mark.parametrize(
    ("death", "word"),
    [
        (("step", "9"), "resuming after step 8"),
        (("write", "7"), ".writing: a checkpoint was half written when the run stopped; skipped"),
    ],
)
def test_a_killed_run_resumes_to_the_same_result(speaker, whole, tmp_path, death, word):
    """Killed in the middle of an epoch, or of a checkpoint write: optimizer, schedule, data order and RNG survive."""
    prepare(tmp_path, speaker)
    killed = ppe_lora(tmp_path, REPOSITORY / "tests" / "pipeline" / "dying_train.py", *death, "run.yaml")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = ppe_lora(tmp_path, "-m", "ppe_lora", "train", "run.yaml", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert word in resumed.stdout
    assert_same_result(whole / "checkpoints" / "run", tmp_path / "checkpoints" / "run")


def test_sigterm_saves_and_says_how_to_continue(speaker, whole, tmp_path):
    """A preempted machine sends SIGTERM: the step in progress is finished and saved."""
    prepare(tmp_path, speaker)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-m", "ppe_lora", "train", "run.yaml"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    log = tmp_path / "checkpoints" / "run" / "train_log.csv"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().split()) > 3):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped by SIGTERM after step" in output
    assert "continue with `ppe-lora train --resume`" in output
    train(load_recipe(tmp_path / "run.yaml"), tmp_path / "data" / "d", tmp_path / "checkpoints" / "run", resume=True)
    assert_same_result(whole / "checkpoints" / "run", tmp_path / "checkpoints" / "run")


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_signal_while_an_epoch_is_evaluated_stops_that_and_nothing_is_lost(
    speaker, whole, tmp_path, monkeypatch, capsys, epoch
):
    """An evaluation may take an hour, a preempted machine has a minute: the epoch's last step is saved as it is, and
    the resumed run evaluates it."""
    prepare(tmp_path, speaker)
    recipe, data, run = load_recipe(tmp_path / "run.yaml"), tmp_path / "data" / "d", tmp_path / "checkpoints" / "run"
    evaluations = []

    def terminated(*args):
        evaluations.append(1)
        if len(evaluations) == epoch:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("went on evaluating after SIGTERM")
        return original(*args)

    original = callbacks.evaluate_student
    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "evaluate_student", terminated)
        with pytest.raises(Interrupted) as error:
            train(recipe, data, run)
    assert str(error.value) == (
        f"{run}: stopped by SIGTERM after step {7 * epoch}; everything is saved, continue with `ppe-lora train "
        "--resume`"
    )
    assert "SIGTERM: saving a checkpoint; once more stops at once" in capsys.readouterr().out
    assert [folder.name for folder in epoch_folders(run)] == ["001"][: epoch - 1]
    train(recipe, data, run, resume=True)
    assert_same_result(whole / "checkpoints" / "run", run)


def test_a_kill_before_an_evaluation_does_not_outlast_the_patience(speaker, tmp_path, monkeypatch):
    """Resumed behind the last step of the epoch that runs out the patience, a run trained one epoch more than an
    uninterrupted one: the epoch was evaluated then, but nothing stopped."""
    make_data(tmp_path / "data" / "d")
    train_section = SECTIONS[0].replace("epochs: 2", "epochs: 4, patience: 1").replace(", objective: {head: 1}", "")
    recipe = load_recipe(make_recipe(tmp_path, speaker, train_section, SECTIONS[1]))
    data, run = tmp_path / "data" / "d", tmp_path / "checkpoints" / "run"
    monkeypatch.setattr(callbacks, "best_epoch", lambda history, settings: min(history, default=None))
    evaluate = EpochEvaluation._evaluate

    def killed(self, state, model):
        if state.global_step == 6:
            raise KeyboardInterrupt
        evaluate(self, state, model)

    with monkeypatch.context() as patch:
        patch.setattr(EpochEvaluation, "_evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, data, run)
    assert sorted(path.name for path in (run / "state").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
    train(recipe, data, run, resume=True)
    assert [path.name for path in epoch_folders(run)] == ["001", "002"]


def test_a_finished_run_is_left_alone(whole, capsys):
    """Running the same recipe again must not train again."""
    run = whole / "checkpoints" / "run"
    before = (run / "manifest.json").stat().st_mtime_ns
    train(load_recipe(whole / "run.yaml"), whole / "data" / "d", run)
    assert (run / "manifest.json").stat().st_mtime_ns == before
    assert "training is complete and unchanged" in capsys.readouterr().out


def test_a_full_disk_is_a_clear_error_and_keeps_the_run(speaker, tmp_path, monkeypatch):
    """A write that fails must name the place and the remedy, and leave earlier checkpoints whole."""
    prepare(tmp_path, speaker)
    recipe = load_recipe(tmp_path / "run.yaml")
    data, run = tmp_path / "data" / "d", tmp_path / "checkpoints" / "run"
    original = PpeTrainer._save_optimizer_and_scheduler

    def full(self, folder):
        if self.state.global_step == 3:
            raise OSError(28, "No space left on device")
        original(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(PpeTrainer, "_save_optimizer_and_scheduler", full)
        with pytest.raises(WorldError) as error:
            train(recipe, data, run)
    assert str(error.value) == (
        f"{run}/state: the checkpoint of step 3 could not be written: expected room on the disk; got No space left on "
        "device; free some space, then repeat the command; what was finished is kept. Continue with `ppe-lora train "
        "--resume`: earlier checkpoints are untouched"
    )
    assert sorted(path.name for path in (run / "state").glob("*checkpoint*")) == ["checkpoint-1", "checkpoint-2"]
    assert (run / "state" / "checkpoint-2" / "complete.json").is_file()
    train(recipe, data, run, resume=True)
    assert read_json(run / "manifest.json")["selected_epoch"] in (1, 2)


def test_a_run_that_failed_before_its_first_step_takes_a_corrected_recipe(speaker, tmp_path):
    """A misspelt model left a folder that refused the corrected command, and asked for --fresh."""
    prepare(tmp_path, speaker)
    data, run, stopped = tmp_path / "data" / "d", tmp_path / "checkpoints" / "run", "stopped before any training"

    def stop() -> None:
        raise RuntimeError(stopped)

    with pytest.raises(ModelError, match=r"student\.model: expected an existing folder"):
        train(load_recipe(tmp_path / "run.yaml", ["student.model=./nowhere"]), data, run)
    found_out = run / "state" / "rows_per_micro_step.json"
    write_json(found_out, {"rows": 8})
    for resume in (False, True):
        with pytest.raises(RuntimeError, match=stopped):
            train(load_recipe(tmp_path / "run.yaml", [f"seed={int(resume)}"]), data, run, resume=resume, on_start=stop)
    assert load_recipe(run / "config.yaml") == load_recipe(tmp_path / "run.yaml", ["seed=1"])
    assert not found_out.exists()
    (run / "train_log.csv").write_text("step\n1\n")
    with pytest.raises(RunError, match="holds a run that differs in seed"):
        train(load_recipe(tmp_path / "run.yaml"), data, run, resume=True)


def test_a_changed_recipe_or_data_set_is_refused(whole, tmp_path):
    """A resume with another learning rate or other rows would mix two experiments in one folder."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    data, run = tmp_path / "data" / "d", tmp_path / "checkpoints" / "run"
    for resume in (True, False):
        with pytest.raises(RunError) as error:
            train(load_recipe(tmp_path / "run.yaml", ["train.learning_rate=1e-4"]), data, run, resume=resume)
        assert str(error.value) == (
            f"{run}: holds a run that differs in train.learning_rate. Give this one another name (name=...), or start "
            "over with --fresh, which deletes that run."
        )
    write_manifest(data, {"made": "anew"}, dataset_version="other-data")
    with pytest.raises(RunError, match="its data set has changed since"):
        train(load_recipe(tmp_path / "run.yaml"), data, run, resume=True)
    assert (run / "best" / "adapter_model.safetensors").is_file()
