"""A signal in each stage: it ends soon, and says what is true of what was under way."""

import os
import signal

import pytest

from ppe_lora import pipeline
from ppe_lora.boundary import in_words
from ppe_lora.corpus import build
from ppe_lora.errors import Interrupted, WorldError
from ppe_lora.export import stage
from ppe_lora.recipe import load_recipe
from ppe_lora.report import run_report
from ppe_lora.student import test_rows, training
from ppe_lora.student.callbacks import Checkpoints, EvaluationStopped
from ppe_lora.student.checkpoints import commit_checkpoint
from tests.runs import make_data, make_recipe

TRAIN = "train: {epochs: 1, rows_per_step: 8, rows_per_micro_step: 8, learning_rate: 5e-3, objective: {head: 1}}"
STAGES = {
    "data": (
        build, "build_dataset", pipeline.build_data,
        "data/d is not finished; what a teacher has answered is kept, and the same command goes on from there",
    ),
    "evaluate": (
        test_rows, "evaluate_test_rows", pipeline.evaluate,
        "the training of checkpoints/run is kept; its test rows are not measured yet, the same command does it",
    ),
    "export": (
        stage, "export_run", pipeline.export,
        "what checkpoints/run has of exports is whole; the same command makes the missing ones",
    ),
    "report": (
        run_report, "write_report", lambda recipe: pipeline._report(recipe, pipeline.run_dir(recipe)),
        "checkpoints/run is unchanged but for its report; the same command writes that",
    ),
}  # fmt: skip


def terminated(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)
    pytest.fail("went on after SIGTERM")


@pytest.fixture
def recipe(speaker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / "data" / "d", train=60)
    return load_recipe(make_recipe(tmp_path, speaker, TRAIN))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_ends_at_once_and_says_what_is_kept(recipe, monkeypatch, name):
    """SIGTERM ended them without a word, Ctrl-C with `Aborted`."""
    module, function, run, kept = STAGES[name]
    monkeypatch.setattr(module, function, terminated)
    with pytest.raises(Interrupted) as error:
        run(recipe)
    assert str(error.value) == f"stopped by SIGTERM; {kept}"


@pytest.mark.parametrize("function", ["request_states", "fit_teaching_heads", "load_base"])
def test_before_its_first_step_a_training_does_not_say_that_it_saves(recipe, monkeypatch, capsys, function):
    """While hidden states were read it said `saving a checkpoint after this step`, and went on for an hour."""
    monkeypatch.setattr(training, function, terminated)
    with pytest.raises(Interrupted) as error:
        pipeline.train(recipe)
    assert str(error.value) == (
        "stopped by SIGTERM; checkpoints/run: no step is saved yet, continue with `ppe-lora train RECIPE --resume`"
    )
    assert "saving a checkpoint" not in capsys.readouterr().out


def test_a_second_signal_stops_at_once_and_names_the_newest_checkpoint(recipe, monkeypatch, capsys):
    """It ended with `Aborted`, status 1, and no word on what is kept."""

    def twice(self, *args, **kwargs):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on after the second SIGTERM")

    monkeypatch.setattr(training.PpeTrainer, "training_step", twice)
    staged = pipeline.run_dir(recipe) / "state" / ".writing" / "checkpoint-7"
    staged.mkdir(parents=True)
    monkeypatch.setattr(training, "_checkpoint", lambda run_dir: None)
    commit_checkpoint(pipeline.run_dir(recipe) / "state", 7, keep=2)
    with pytest.raises(Interrupted) as error:
        pipeline.train(recipe)
    assert str(error.value) == (
        "stopped by SIGTERM; checkpoints/run: everything up to step 7 is kept, continue with `ppe-lora train RECIPE "
        "--resume`"
    )
    assert "SIGTERM: saving a checkpoint after this step; once more stops at once" in capsys.readouterr().out


def test_an_epoch_is_not_evaluated_after_a_signal_in_its_last_step():
    """It said that it saves after this step, and evaluated the epoch first."""
    checkpoints = Checkpoints(minutes=5)
    with checkpoints.evaluating():
        pass
    checkpoints.stopped_by = "SIGTERM"
    with pytest.raises(EvaluationStopped), checkpoints.evaluating():
        pytest.fail("evaluated")


def test_a_run_that_cannot_be_deleted_is_named(recipe, monkeypatch):
    """`--fresh` on a read-only run was told to use `--fresh`."""
    run = pipeline.run_dir(recipe)
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("")

    def read_only(path, *args, **kwargs):
        if kwargs.get("ignore_errors") is not True:
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(training.shutil, "rmtree", read_only)
    with pytest.raises(WorldError) as error, in_words():
        training.train(recipe, pipeline.data_dir(recipe), run, fresh=True)
    assert str(error.value).startswith(f"{run}: expected access to it; got Permission denied; ")
