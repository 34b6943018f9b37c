"""The runner of a sweep, with small processes in place of trainings."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ppe_lora.artifacts import read_json, write_json, write_manifest, write_text
from ppe_lora.errors import RecipeError
from ppe_lora.recipe import load_recipe
from ppe_lora.sweep import Job, Outcome, check_gpus, is_finished, load_sweep, run_job, run_jobs
from tests.command import ppe_lora
from tests.evaluations import predictions, write_recipe, write_run

ROOT = Path(__file__).parents[2]


def job(folder: Path, name: str, script: str) -> Job:
    return Job(name, [sys.executable, "-c", script], folder / f"{name}.log")


def test_a_failed_run_does_not_stop_the_others(tmp_path, capsys):
    """One recipe that runs out of memory at night must not cost the other four."""
    jobs = [
        job(tmp_path, "good", "print('loss 1.0')"),
        job(tmp_path, "killed", "import os; print('half way', flush=True); os.kill(os.getpid(), 9)"),
        job(tmp_path, "wrong", "import sys; print('error: x: expected y; got z\\nmore', file=sys.stderr); sys.exit(2)"),
        job(tmp_path, "last", "print('loss 2.0')"),
    ]
    assert run_jobs(jobs) == [
        Outcome("good", "finished"),
        Outcome("killed", "failed", "exit status -9: half way"),
        Outcome("wrong", "failed", "x: expected y; got z"),
        Outcome("last", "finished"),
    ]
    assert (tmp_path / "good.log").read_text() == "loss 1.0\n"
    told = capsys.readouterr().out
    assert "good | loss 1.0" in told
    assert "last | loss 2.0" in told


def test_one_run_at_a_time_without_gpus(tmp_path):
    """Two trainings on one GPU would share its memory, and one of them die."""
    script = (
        f"import time, pathlib; p = pathlib.Path({str(tmp_path / 'busy')!r}); p.mkdir(); time.sleep(0.2); p.rmdir()"
    )
    assert [one.ended for one in run_jobs([job(tmp_path, name, script) for name in "abc"])] == ["finished"] * 3


def test_one_run_per_gpu(tmp_path):
    """Each sees its own GPU, no GPU has two runs at a time, and a freed one takes the next."""
    script = (
        "import os, time, pathlib\n"
        f"p = pathlib.Path({str(tmp_path)!r}) / ('gpu' + os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "p.mkdir(); time.sleep(0.5); p.rmdir(); print(os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    started = time.monotonic()
    outcomes = run_jobs([job(tmp_path, name, script) for name in "abcd"], gpus=["0", "3"])
    assert [one.ended for one in outcomes] == ["finished"] * 4
    assert sorted((tmp_path / f"{name}.log").read_text().strip() for name in "abcd") == ["0", "0", "3", "3"]
    assert time.monotonic() - started < 4 * 0.5 + 1.5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_what_runs_once_and_stops_the_sweep(tmp_path, number):
    """A training takes the second signal as `stop without saving`; a next run must not start after a Ctrl-C."""
    child = (
        "import signal, sys, time\n"
        "def save(*_): print('saved', flush=True); time.sleep(0.5); print('whole', flush=True); sys.exit(130)\n"
        "for one in (signal.SIGINT, signal.SIGTERM): signal.signal(one, save)\n"
        "print('ready', flush=True); time.sleep(30)"
    )
    parent = (
        "from pathlib import Path; import sys\nfrom ppe_lora.errors import Interrupted\n"
        "from ppe_lora.sweep import Job, run_jobs\n"
        f"jobs = [Job(name, [sys.executable, '-c', {child!r}], Path(name + '.log')) for name in ('one', 'two')]\n"
        "try:\n    run_jobs(jobs)\nexcept Interrupted as error:\n    print('told:', error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", parent], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    log = tmp_path / "one.log"
    deadline = time.monotonic() + 30
    while not (log.exists() and "ready" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, number)  # the whole group, as a terminal does
    told, _ = process.communicate(timeout=30)
    assert told.splitlines()[-1] == "told: sweep: stopped; the same command continues where it was"
    assert log.read_text() == "ready\nsaved\nwhole\n"
    assert not (tmp_path / "two.log").exists()


# ------------------------------------------------------------------------------------------------------------- recipes


def test_recipes_of_a_folder_with_overrides(tmp_path):
    for name in ("b", "a"):
        write_recipe(tmp_path / f"{name}.yaml")
    planned = load_sweep(tmp_path, ["train.epochs=7"])
    assert [(one.path.stem, one.recipe.name, one.recipe.train.epochs) for one in planned] == [
        ("a", "a", 7), ("b", "b", 7),
    ]  # fmt: skip
    command = ["-m", "ppe_lora", "run", str(tmp_path / "a.yaml"), "train.epochs=7"]
    assert run_job(planned[0], tmp_path / "logs").command[1:] == command
    beside = load_sweep(tmp_path, ["train.epochs=7"], "_7")
    assert [one.recipe.name for one in beside] == ["a_7", "b_7"]
    assert run_job(beside[0], tmp_path / "logs").command[1:] == [*command, "name=a_7"]


def message(folder: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load_sweep(folder, overrides)
    return str(error.value)


def test_bad_sweeps_are_refused_before_anything_runs(tmp_path):
    """The fifth recipe's typing error must not be found after the fourth one's training."""
    assert message(tmp_path / "none") == f"{tmp_path}/none: expected a folder with recipes (*.yaml); got none"
    write_recipe(tmp_path / "a.yaml")
    write_recipe(tmp_path / "b.yaml", "train: {epoch: 3}")
    assert message(tmp_path) == f"{tmp_path}/b.yaml:4: train.epoch: unknown key; did you mean 'epochs'?"
    for name in ("a", "A"):  # one folder on many disks
        write_recipe(tmp_path / "b.yaml", f"name: {name}")
        taken = f"got {name}, that of {tmp_path}/a.yaml"
        assert message(tmp_path) == f"{tmp_path}/b.yaml: expected a name of its own; {taken}"
    assert message(tmp_path, "name=x") == "name=x: would give all runs of the sweep one name; use --suffix"


@pytest.mark.parametrize(
    ("count", "gpus", "problem"),
    [
        (0, "x", "numbers of GPUs here, such as 0,1; this machine has none; got x"),
        (0, "0", "numbers of GPUs here, such as 0,1; this machine has none; got 0"),
        (2, "1,2", "numbers of GPUs here, such as 0,1; this machine has 0,1; got 1,2"),
        (2, "-1", "numbers of GPUs here, such as 0,1; this machine has 0,1; got -1"),
        (2, "1,0,1", "every GPU once; got 1,0,1; two runs would share its memory"),
    ],
)
def test_gpus_that_are_not_here_are_refused_before_anything_runs(tmp_path, monkeypatch, capsys, count, gpus, problem):
    """CUDA hides what it does not know: the run trained on the CPU, or on another run's GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppe_lora.student.machine.gpu_count", lambda: count)
    write_recipe(tmp_path / "ranks" / "a.yaml")
    assert ppe_lora("sweep", "ranks", "--gpus", gpus) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"error: --gpus: expected {problem}\n")


def test_gpus_that_are_here_are_accepted(monkeypatch):
    """Hidden ones too: each run gets its number in the machine's own count."""
    environments = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: environments.append(dict(os.environ)) or 2)
    check_gpus(["0", "1", "GPU-8932f937-d72c", "MIG-41b359a7"])
    assert "CUDA_VISIBLE_DEVICES" not in environments[0]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


# ------------------------------------------------------------------------------------------------------------ finished


@pytest.fixture
def whole(tmp_path) -> Path:
    write_manifest(tmp_path / "data", {}, dataset_version="v")
    run = write_run(tmp_path / "run", predictions([1, 2, 3]))
    write_manifest(run / "merged", {})
    write_text(run / "summary.md", "whole")
    return tmp_path


def finished(folder: Path, *overrides: str) -> bool:
    return is_finished(load_recipe(folder / "run.yaml", overrides), folder / "data", folder / "run")


def test_what_is_finished_is_skipped(whole):
    assert finished(whole)


@pytest.mark.parametrize("missing", ["summary.md", "merged/manifest.json", "test/manifest.json", "config.yaml"])
def test_a_missing_stage_is_not_finished(whole, missing):
    (whole / "run" / missing).unlink()
    assert not finished(whole)


def test_another_recipe_data_set_or_metric_is_not_finished(whole):
    """A leaderboard must not show what the old settings gave."""
    assert not finished(whole, "train.epochs=9")
    manifest = read_json(whole / "run" / "test" / "manifest.json")
    for name in ("metric_version", "format"):
        older = {**manifest, "inputs": {**manifest["inputs"], name: manifest["inputs"][name] - 1}}
        write_json(whole / "run" / "test" / "manifest.json", older)
        assert not finished(whole)
    write_json(whole / "run" / "test" / "manifest.json", manifest)
    assert finished(whole)
    write_manifest(whole / "data", {}, dataset_version="w")
    assert not finished(whole)


# ---------------------------------------------------------------------------------------------------------------- agent


def test_an_agent_of_wandb_starts_the_recipes(tmp_path):
    """The example for clusters, through wandb's own expansion of the command, for every recipe of the sweep."""
    from ruamel.yaml import YAML
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    config = YAML(typ="safe").load((ROOT / "examples" / "wandb_sweep.yaml").read_text())
    stub = tmp_path / "ppe-lora"
    stub.write_text('#!/bin/sh\nprintf "%s " "$@"\n')
    stub.chmod(0o755)
    for recipe in config["parameters"]["recipe"]["values"]:
        macros = create_sweep_command_args({"args": {"recipe": {"value": recipe}}})
        command: list[str] = []
        for part in create_sweep_command(config["command"]):
            command += macros[part[2:-1]] if part.startswith("${") else [part]
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
        assert told[0] == "run"
        assert load_recipe(ROOT / told[1]).name == recipe
    assert len(config["parameters"]["recipe"]["values"]) == len(list((ROOT / "recipes" / "rank_sweep").glob("*.yaml")))
