"""What trackers are told of a run, and how the process that tells them bears with their failures."""

import json
import threading
from pathlib import Path

import pytest

from ppe_lora.artifacts import write_manifest
from ppe_lora.errors import DataError, RecipeError, RunError
from ppe_lora.recipe import load_recipe
from ppe_lora.recipe.track import Track, WandbTrack, WeaveTrack
from ppe_lora.tracking import follow as following
from ppe_lora.tracking.follow import follow
from ppe_lora.tracking.follower import Followers, Place, is_online, trackers
from ppe_lora.tracking.run_folder import RunFolder
from ppe_lora.tracking.sync import sync
from tests.tracked_runs import WrittenRun


class Scripted:
    """A tracker that fails as told, and ends the run after some updates."""

    def __init__(self, failures: list[bool], ended: threading.Event) -> None:
        self.failures, self.ended = failures, ended
        self.finished = 0

    def update(self) -> None:
        failing = self.failures.pop(0) if self.failures else False
        if not self.failures:
            self.ended.set()
        if failing:
            raise OSError("no route to host")

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    monkeypatch.setattr(following, "POLL_S", 0.0)
    monkeypatch.setattr(following, "RETRY_S", 0.0)
    found = Place(tmp_path, "wandb")
    found.folder.mkdir()
    return found


def test_a_failure_in_between_is_tried_again_and_forgotten(place):
    """A network that was away for an hour must not leave the rest of a week's training untracked."""
    ended = threading.Event()
    tracker = Scripted([False, True, True, False], ended)
    assert follow(place, lambda: tracker, ended) == 0
    assert not place.problem.exists()
    assert tracker.failures == []
    assert tracker.finished == 3


def test_a_failure_at_the_end_is_told(place):
    ended = threading.Event()
    ended.set()
    assert follow(place, lambda: Scripted([True], ended), ended) == 1
    assert place.problem.read_text() == "no route to host\n"


def test_a_tracker_that_cannot_even_be_made_is_told(place):
    ended = threading.Event()
    ended.set()

    def make():
        raise RunError("no W&B key: set WANDB_API_KEY, or run `wandb login`")

    assert follow(place, make, ended) == 1
    assert place.problem.read_text() == "no W&B key: set WANDB_API_KEY, or run `wandb login`\n"


@pytest.mark.parametrize(
    ("mode", "told", "has_key", "online"),
    [
        ("auto", None, True, True),
        ("auto", None, False, False),
        ("auto", "offline", True, False),
        ("auto", "online", True, True),
        ("offline", "online", True, False),
        ("online", "offline", True, True),
    ],
)
def test_offline_by_default_where_there_is_no_key(monkeypatch, mode, told, has_key, online):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if told:
        monkeypatch.setenv("WANDB_MODE", told)
    assert is_online(Track(mode=mode), lambda: has_key) is online


def test_nothing_is_tracked_unless_a_recipe_says_so(tmp_path):
    run = WrittenRun(tmp_path)
    assert trackers(run.recipe.track) == []
    with Followers(run.recipe, run.data, run.run) as followers:
        followers.start()
    assert not (run.run / "tracking").exists()
    both = Track(wandb=WandbTrack(project="ppe"), weave=WeaveTrack(project="team/ppe"))
    assert trackers(both) == ["wandb", "weave"]


def test_a_process_that_cannot_be_started_is_a_warning(tmp_path, monkeypatch, capsys):
    """Out of memory at the start of a tracker is no reason to lose a training."""
    run = WrittenRun(tmp_path, "{wandb: {project: ppe}}")

    def fail(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("ppe_lora.tracking.follower.launch", fail)
    with Followers(run.recipe, run.data, run.run) as followers:
        followers.start()
    assert capsys.readouterr().out == (
        f"warning: W&B: [Errno 12] Cannot allocate memory. Everything is in {run.run}; "
        f"`ppe-lora track sync {run.run}` sends it later\n"
    )


def test_a_half_written_log_line_waits(tmp_path):
    """The log is read while training writes it."""
    run = WrittenRun(tmp_path)
    run.train(1, 2)
    with (run.run / "train_log.csv").open("a") as log:
        log.write("3,0.7")
    assert list(RunFolder(run.recipe, run.data, run.run).history()) == [1, 2]


def test_an_unfinished_stage_is_not_shown(tmp_path):
    """A file without its stage's manifest may be half of one."""
    run = WrittenRun(tmp_path).all_of_it()
    for stage in ("test", "merged", "."):
        (run.run / stage / "manifest.json").unlink()
    folder = RunFolder(run.recipe, run.data, run.run)
    assert folder.made_files() == []
    assert folder.summary() == {}
    assert [one.label for one in folder.evaluations()] == ["epoch-001", "epoch-002"]


def test_the_summary_has_the_errors_of_what_is_served(tmp_path):
    """W&B ranks runs by a summary figure: `test/mse_norm` is the greedy text's, whatever a run serves."""
    run = WrittenRun(tmp_path).all_of_it()
    recipe = run.recipe.model_copy(
        update={"evaluate": run.recipe.evaluate.model_copy(update={"read_out": "posterior_mean"})}
    )
    summary = RunFolder(recipe, run.data, run.run).summary()
    assert summary["test/served/mae_raw"] == summary["test/mae_raw_posterior_mean"] == 2.0
    assert summary["test/mae_raw"] == 5.0
    greedy = RunFolder(run.recipe, run.data, run.run).summary()
    assert greedy["test/served/mae_raw"] == 5.0


def test_a_data_set_that_has_changed_is_not_sent_as_the_runs_own(tmp_path):
    run = WrittenRun(tmp_path).all_of_it()
    write_manifest(run.data, {}, dataset_version="version-2")
    with pytest.raises(DataError) as error:
        RunFolder(run.recipe, run.data, run.run)
    assert str(error.value) == (
        f"{run.data}: expected version version-1, which {run.run} was trained on; got version version-2. Build that "
        "data set again, with the run's config.yaml"
    )


def test_sync_of_a_run_that_tracks_nothing_says_how(tmp_path):
    run = WrittenRun(tmp_path)
    with pytest.raises(RunError) as error:
        list(sync(run.recipe, run.data, run.run))
    assert str(error.value) == (
        f"{run.run}: tracks nothing; name a project, for example `ppe-lora track sync {run.run} "
        "'track.wandb={project: ppe}'`"
    )


def test_sync_without_a_key_says_so(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = WrittenRun(tmp_path, "{wandb: {project: ppe}}").all_of_it()
    with pytest.raises(RunError) as error:
        list(sync(run.recipe, run.data, run.run))
    log = run.run / "tracking" / "wandb.log"
    assert str(error.value) == (
        f"W&B: no W&B key: set WANDB_API_KEY, or run `wandb login` (its log is {log}). Nothing is lost; sync again"
    )


@pytest.mark.parametrize(
    ("track", "message"),
    [
        ("{weave: {project: ppe}}", "track.weave.project: expected entity/project, for example my-team/ppe; got 'ppe'"),
        ("{weave: {project: a/b, rate: 0}}", "track.weave.rate: expected greater than 0; got 0"),
        ("{wandb: {}}", "track.wandb.project: missing; the recipe must set it"),
        ("{wanbd: {project: ppe}}", "track.wanbd: unknown key; did you mean 'wandb'?"),
    ],
)
def test_mistakes_in_the_recipe_are_named(tmp_path, track, message):
    with pytest.raises(RecipeError) as error:
        WrittenRun(tmp_path, track)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'run.yaml'}:")


def test_config_says_who_made_the_requests(tmp_path):
    run = WrittenRun(tmp_path)
    config = RunFolder(run.recipe, run.data, run.run).config
    assert (config["teacher_model"], config["sampling_strategy"]) == (
        "scripted", "uniform 0.5, clusters 0.3, edges 0.2",
    )  # fmt: skip
    source = {"kind": "import", "source_dir": ".", "files": {"f": {"path": "x"}}, "request": "f.t",
              "target": {"a": "f.a", "b": "f.b"}}  # fmt: skip
    imported = load_recipe(Path(run.run / "config.yaml"), [f"data.source={json.dumps(source)}"])
    config = RunFolder(imported, run.data, run.run).config
    assert (config["teacher_model"], config["sampling_strategy"]) == ("import", "import")
