"""The leaderboard of a sweep: what is selected, what is claimed, what is refused."""

import csv
from pathlib import Path

import numpy as np
import pytest

from ppe_lora.artifacts import read_json, write_json
from ppe_lora.errors import RunError
from ppe_lora.evaluation.leaderboard import Leaderboard, build_leaderboard
from ppe_lora.recipe import load_recipe
from ppe_lora.report.leaderboard import metric_label, verdict, write_leaderboard
from ppe_lora.report.run_words import LATENCY_NOTE
from tests.evaluations import predictions, write_run

ROWS = 60


def run(folder: Path, rank: int, spread: float, valid: float, seed: int = 0, **inputs: object) -> None:
    errors = np.random.default_rng(seed).normal(0, spread, ROWS).clip(-30, 30).round()
    rows = predictions([int(error) for error in errors])
    write_run(folder / f"r{rank:02d}", rows, f"student.lora.rank={rank}", valid=valid, **inputs)


def board(folder: Path, failed: dict[str, str] | None = None) -> Leaderboard:
    runs = {path.parent: load_recipe(path) for path in sorted(folder.glob("*/config.yaml"))}
    return build_leaderboard(runs, failed or {})


def test_the_selected_run_is_that_of_the_validation_rows(tmp_path):
    """Chosen on the test rows, the winner's lead would partly be luck, and its interval a lie."""
    run(tmp_path, 4, spread=20, valid=0.3, seed=1)
    run(tmp_path, 8, spread=5.0, valid=0.2, seed=2)
    run(tmp_path, 16, spread=5.1, valid=0.1, seed=2)
    found = board(tmp_path)
    assert [entry.name for entry in found.entries] == ["r08", "r16", "r04"]
    assert found.selected == "r16"
    assert [entry.settings for entry in found.entries] == [{"student.lora.rank": rank} for rank in (8, 16, 4)]
    assert found.beaten_by("r16") == ["r04"]
    assert found.beaten_by("r08") == ["r04"]
    assert found.beaten_by("r04") == []
    assert verdict(found).en == (
        f"r16 is selected: the smallest mse_norm on the validation rows. On {ROWS} test rows it beats r04. "
        f"{ROWS} test rows show no difference from r08."
    )
    assert found.between("r04", "r16").difference == -found.between("r16", "r04").difference
    assert found.between("r04", "r16").high == -found.between("r16", "r04").low


def test_the_selected_run_may_lose_and_that_is_said(tmp_path):
    run(tmp_path, 4, spread=20, valid=0.1, seed=1)
    run(tmp_path, 8, spread=5, valid=0.2, seed=2)
    assert f"On {ROWS} test rows it loses to r08." in verdict(board(tmp_path)).en


def test_equal_runs_do_not_beat_each_other(tmp_path):
    for rank in (4, 8, 16):
        run(tmp_path, rank, spread=10, valid=0.1)
    found = board(tmp_path)
    assert [found.beaten_by(entry.name) for entry in found.entries] == [[], [], []]
    assert f"{ROWS} test rows show no difference from r08 and r16." in verdict(found).en


def test_unfinished_and_failed_runs_are_named_and_not_ranked(tmp_path):
    for rank in (4, 8, 16):
        run(tmp_path, rank, spread=10, valid=0.1)
    (tmp_path / "r08" / "test" / "manifest.json").unlink()
    found = board(tmp_path, {"r16": "exit status -9: nothing"})
    assert [entry.name for entry in found.entries] == ["r04"]
    assert found.unfinished == {
        "r08": "unfinished run: the test rows are not decoded yet; `ppe-lora evaluate RECIPE`",
        "r16": "exit status -9: nothing",
    }
    with pytest.raises(RunError, match="expected at least one finished run; got none\n  r04: killed"):
        build_leaderboard({tmp_path / "r04": load_recipe(tmp_path / "r04" / "config.yaml")}, {"r04": "killed"})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [({"test_rows": "def"}, "expected the test rows of r04 (abc); got def"),
     ({"metric_version": 1}, "expected the metric version of r04 (2); got 1")],
)  # fmt: skip
def test_other_test_rows_never_share_the_table(tmp_path, inputs, message):
    run(tmp_path, 4, spread=10, valid=0.1)
    run(tmp_path, 8, spread=10, valid=0.1, **inputs)
    with pytest.raises(RunError) as error:
        board(tmp_path)
    assert message in str(error.value)


def test_a_run_cannot_lead_by_not_answering(tmp_path):
    """Ranked by the accepted answers alone, r08 led the table that the differences showed it to be last in."""
    errors = [30] * 10 + [8] * (ROWS - 10)
    write_run(tmp_path / "r04", predictions(errors), "student.lora.rank=4")
    write_run(tmp_path / "r08", predictions(errors, rejected=range(10)), "student.lora.rank=8")
    found = board(tmp_path)
    metrics = {entry.name: entry.stored.metrics for entry in found.entries}
    assert metrics["r08"]["mse_norm"] < metrics["r04"]["mse_norm"]
    assert [entry.name for entry in found.entries] == ["r04", "r08"]
    assert found.entries[1].error == pytest.approx(found.between("r04", "r08").second)


def test_tables_say_which_read_out_a_metric_is_of_and_which_is_served(tmp_path):
    """`r2` unlabelled is the greedy text's, beside a ranking by another read-out; the corrected one was not shown."""
    rows = [row | {"calibrated": row["posterior_mean"]} for row in predictions([5] * ROWS)]
    for rank in (4, 8):
        path = write_run(tmp_path / f"r{rank:02d}", rows, f"student.lora.rank={rank}", "evaluate.read_out=calibrated")
        metrics = read_json(path / "test" / "eval_metrics.json")
        write_json(path / "test" / "eval_metrics.json", metrics | {"r2_calibrated": 0.7, "mse_norm_calibrated": 0.01})
    found = board(tmp_path)
    labels = [metric_label(name, found) for name in ("r2", "r2_calibrated", "r2/a", "r2_posterior_mean", "crps")]
    assert labels == ["r2 (greedy text)", "r2_calibrated (served)", "r2/a (greedy text)", "r2_posterior_mean", "crps"]
    write_leaderboard(tmp_path / "sweep", found)
    text = (tmp_path / "sweep" / "leaderboard.md").read_text(encoding="utf-8")
    assert "| r2_calibrated (served) | 0.7000 | 0.7000 |" in text
    assert "is selected: the smallest mse_norm_posterior_mean on the validation rows." in text
    assert LATENCY_NOTE.en in text


def test_files_hold_every_metric_of_every_run(tmp_path):
    run(tmp_path, 4, spread=20, valid=0.3, seed=1)
    run(tmp_path, 8, spread=5, valid=0.1, seed=2)
    found = board(tmp_path, {"r99": "x"})
    write_leaderboard(tmp_path / "sweep", found)
    rows = list(csv.DictReader((tmp_path / "sweep" / "leaderboard.csv").open(encoding="utf-8")))
    assert [(row["run"], row["student.lora.rank"], row["selected"]) for row in rows] == [
        ("r08", "8", "True"), ("r04", "4", "False"),
    ]  # fmt: skip
    stored = read_json(tmp_path / "sweep" / "leaderboard.json")
    for row, told, entry in zip(rows, stored["runs"], found.entries, strict=True):
        assert told["test"] == entry.stored.metrics
        assert {name: float(row[f"test/{name}"]) for name in told["test"]} == pytest.approx(told["test"])
        assert (row["rows_per_s"], row["peak_memory_bytes"]) == ("2.5", "2000000000")
    assert float(rows[1]["difference_low"]) > 0
    assert stored["pairs"][0]["is_shown"] is True
    text = (tmp_path / "sweep" / "leaderboard.md").read_text(encoding="utf-8")
    assert "| **r08** (selected) | 8 | 1,000 | 2.00 | 2.500 | passed |" in text
