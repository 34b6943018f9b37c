"""Data that is legal and has nothing to learn or to divide by: every stage goes through, or says why it cannot."""

import pytest

from ppe_lora import commands
from ppe_lora.artifacts import read_json, write_manifest
from ppe_lora.corpus.rows import SPLITS, split_path, write_rows
from ppe_lora.pipeline import data_dir, run_dir
from ppe_lora.recipe import load_recipe
from ppe_lora.report.run_report import write_report
from ppe_lora.student.test_rows import evaluate_test_rows
from ppe_lora.student.training import train
from tests.runs import make_recipe, make_rows

TRAIN = (
    "train: {epochs: 1, rows_per_step: 100, rows_per_micro_step: 20, learning_rate: 5e-3, "
    "objective: {raft: 1, crps: 1, legal: 1, head: 1}}"
)
EVALUATE = "evaluate: {gate: 0.0, latency_rows: 1, read_out: calibrated}"


@pytest.fixture
def constant_run(speaker, tmp_path, monkeypatch):
    """The recipe of a run on rows that all have one target, with more rows a step than there are; and its output."""
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(make_recipe(tmp_path, speaker, TRAIN, EVALUATE))
    rows = [row.model_copy(update={"target": {"a": 50, "b": 50}}) for row in make_rows(90, seed=5)]
    for split, own in zip(SPLITS, (rows[:60], rows[60:84], rows[84:]), strict=True):
        write_rows(split_path(data_dir(recipe), split), own)
    write_manifest(data_dir(recipe), {"made": "by a test"}, dataset_version="constant")
    return recipe


def test_targets_that_all_are_the_train_mean(constant_run, capsys):
    """Its error is 0: the line after an epoch divided by it, again at every resume; so did the baselines, and the
    report found no bar for it. It says so in words."""
    recipe = constant_run
    train(recipe, data_dir(recipe), run_dir(recipe))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 1: "))
    assert "against the train mean's 0.0000" in line
    assert "x)" not in line
    evaluate_test_rows(recipe, data_dir(recipe), run_dir(recipe))
    assert read_json(run_dir(recipe) / "test" / "eval_metrics.json")["train_mean_mse_norm"] == 0.0
    commands.baselines(recipe, models=False)
    shown = next(line for line in capsys.readouterr().out.splitlines() if "0.00000" in line)
    assert shown.rstrip("│ ").endswith("-")
    said = write_report(recipe, data_dir(recipe), run_dir(recipe))
    assert "there is no ratio to that of always answering the train mean (0.00)" in said
