"""The test rows: decoded once, by the best adapter, with a correction that is theirs."""

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from ppe_lora.artifacts import read_json
from ppe_lora.cells import unguarded
from ppe_lora.errors import Interrupted, ModelError
from ppe_lora.recipe import load_recipe
from ppe_lora.student import test_rows
from ppe_lora.student.test_rows import evaluate_test_rows
from ppe_lora.student.training import train
from ppe_lora.tasks.scores import ScoresTask
from tests.runs import make_data, make_recipe


@pytest.fixture(scope="module")
def trained(speaker, tmp_path_factory) -> Path:
    """A folder with a recipe, its data and its trained run."""
    folder = tmp_path_factory.mktemp("trained")
    make_data(folder / "data" / "d", train=60)
    step = (
        "train: {rows_per_step: 8, rows_per_micro_step: 4, learning_rate: 5e-3, objective: {raft: 1, crps: 1, head: 1}}"
    )
    recipe = make_recipe(folder, speaker, step, "evaluate: {gate: 0.0, latency_rows: 2, batch_rows: 4}")
    train(load_recipe(recipe), folder / "data" / "d", folder / "checkpoints" / "run")
    return folder


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def test_test_rows_are_decoded_once_with_the_best_adapter(folder, capsys):
    """The test split is its own folder, and asking twice does not decode twice."""
    run = folder / "checkpoints" / "run"
    recipe = load_recipe(folder / "run.yaml")
    evaluate_test_rows(recipe, folder / "data" / "d", run)
    assert read_json(run / "test" / "eval_metrics.json")["rows"] == 6
    header, *worst = (run / "worst_cases.csv").read_text().splitlines()
    assert header == "id,request,mse_norm,rejected,target_a,target_b,answer_a,answer_b"
    assert len(worst) == 6
    evaluate_test_rows(recipe, folder / "data" / "d", run)
    assert "complete and unchanged" in capsys.readouterr().out


def test_an_interrupted_evaluation_does_not_leave_its_correction_to_the_one_before(folder, monkeypatch):
    """The manifest of the test rows stood for a correction that another evaluation had begun to replace."""
    run = folder / "checkpoints" / "run"
    recipe, other = (load_recipe(folder / "run.yaml", keys) for keys in ((), ["evaluate.head=false"]))
    evaluate_test_rows(recipe, folder / "data" / "d", run)

    def killed(*_, **__):
        raise Interrupted("killed")

    with monkeypatch.context() as patch:
        patch.setattr(test_rows, "evaluate_student", killed)
        with pytest.raises(Interrupted):
            evaluate_test_rows(other, folder / "data" / "d", run)
    assert not (run / "test" / "manifest.json").exists()
    evaluate_test_rows(recipe, folder / "data" / "d", run)
    assert read_json(run / "test" / "manifest.json")["inputs"]["evaluate"]["head"]


def test_a_read_out_that_the_student_does_not_give_is_refused_before_decoding(folder, monkeypatch):
    """A KeyError came after all rows were decoded."""
    ready = test_rows.make_ready
    monkeypatch.setattr(test_rows, "make_ready", lambda *given: (*ready(*given)[:3], None))
    recipe = load_recipe(folder / "run.yaml", ["evaluate.read_out=calibrated"])
    with pytest.raises(ModelError, match=r"^evaluate\.read_out: expected greedy for .*; got calibrated$"):
        evaluate_test_rows(recipe, folder / "data" / "d", folder / "checkpoints" / "run")


def test_worst_cases_run_nothing_in_a_spreadsheet():
    """`=HYPERLINK(...)` in a player's request is a formula where somebody opens the file."""
    request = '=HYPERLINK("http://x","y")'
    row = {"id": "-1+1", "request": request, "target": {"joy": 1, "calm": -5}, "rejected": "@x", "parsed": None}
    recipe = SimpleNamespace(task=ScoresTask(keys=("joy", "calm")), evaluate=SimpleNamespace(read_out="greedy"))
    table = test_rows._worst_cases(SimpleNamespace(predictions=[row]), recipe)
    header, cells = csv.reader(table.splitlines())
    assert dict(zip(header, cells, strict=True)) == {
        "id": "'-1+1", "request": f"'{request}", "mse_norm": "", "rejected": "'@x", "target_joy": "1",
        "target_calm": "-5", "answer_joy": "", "answer_calm": "",
    }  # fmt: skip
    assert unguarded(cells[1]) == request
