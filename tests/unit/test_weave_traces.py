"""Weave without its server, and with one on the loopback interface that speaks its HTTP API."""

from pathlib import Path
from typing import Any

import pytest

from ppe_lora.tasks.scores import ScoresTask
from ppe_lora.tracking import weave_send
from ppe_lora.tracking.follower import Place, launch
from ppe_lora.tracking.run_folder import RunFolder
from ppe_lora.tracking.weave_evaluation import OP, trace_output, traced_rows
from ppe_lora.tracking.weave_traces import WeaveTraces
from tests.tracked_runs import ROWS, WrittenRun
from tests.tracker_server import Received, trace_server

KEY = "0" * 40
CALLS_PER_ROW = 3
EXTRA_CALLS = 2  # the evaluation and its summary


def follow_once(run: WrittenRun, *, mode: str = "auto") -> int:
    """Let a follower see a run that has ended, and return its exit status."""
    process = launch(Place(run.run, "weave"), run.data, run.recipe.track.model_copy(update={"mode": mode}))
    process.stdin.close()
    return process.wait(timeout=250)


def waiting(run: WrittenRun) -> list[Path]:
    return sorted((run.run / "tracking" / "weave").glob("*.jsonl"))


@pytest.fixture
def online(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with trace_server() as (url, received):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WF_TRACE_SERVER_URL", url)
        yield received


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix[:-1]: value}
    return {name: one for key, inner in value.items() for name, one in flat(inner, f"{prefix}{key}.").items()}


def traces(received: Received) -> list[dict[str, Any]]:
    return [call for call in received.calls.values() if f"/op/{OP}:" in call["op_name"]]


def expected_calls(*splits: str) -> int:
    return sum(CALLS_PER_ROW * ROWS[split] + EXTRA_CALLS for split in splits)


def test_every_evaluated_request_is_a_trace_and_part_of_an_evaluation(tmp_path, online):
    run = WrittenRun(tmp_path, "{weave: {project: team/ppe}}").all_of_it()
    assert follow_once(run) == 0, Path(run.run / "tracking" / "weave.log").read_text()
    assert len(online.calls) == expected_calls("valid", "valid", "test")
    assert online.repeated_calls == []
    assert online.dangling == [], "the comparison page would not find the evaluation's data set"
    one = next(call for call in traces(online) if call["attributes"]["split"] == "test")
    shown = flat(one["inputs"]) | flat(one["output"])
    names = {"input.request_text", "model.output_raw", "latency_ms", "error.mse"}
    names |= {f"{name}.{key}" for name in ("model.output_parsed", "target.vector", "error.per_dim") for key in "ab"}
    assert names <= set(shown)
    row = run.rows["test"][0]
    assert shown["input.request_text"] == row.request
    assert (shown["error.per_dim.a"], shown["error.mse"], shown["latency_ms"]) == (10, 50.0, 10.5)
    run_id = (run.run / "tracking" / "run_id").read_text()
    told = {
        "split": "test",
        "model_id": "run-epoch-002",
        "dataset_version": "version-1",
        "run_id": run_id,
        "scenario": list(row.scenario),
    }
    assert {name: one["attributes"][name] for name in told} == told


def test_a_trace_shows_the_answer_that_is_served():
    """The greedy text's errors stood in every trace of a run that answers with its corrected mean, and a text that was
    rejected made an answer of none."""
    task = ScoresTask(keys=("a", "b"))
    target = {"a": 10, "b": 20}
    row = {"target": target, "text": "no answer", "parsed": None, "posterior_mean": {"a": 13, "b": 20}}
    corrected = row | {"calibrated": {"a": 11, "b": 22}}
    told = trace_output(corrected, task, "calibrated")
    assert (told["model"]["read_out"], told["model"]["output_parsed"]) == ("calibrated", {"a": 11, "b": 22})
    assert told["error"] == {"per_dim": {"a": 1, "b": 2}, "mse": 2.5}
    of_an_epoch = trace_output(row, task, "calibrated")
    assert (of_an_epoch["model"]["read_out"], of_an_epoch["error"]["per_dim"]) == ("posterior_mean", {"a": 3, "b": 0})
    assert trace_output(corrected, task, "greedy")["error"] == {"per_dim": None, "mse": None}


def test_an_evaluation_has_our_scores_and_the_same_data_in_every_epoch(tmp_path, online):
    """The comparison page pairs evaluations of one data set; another digest per epoch would pair nothing."""
    run = WrittenRun(tmp_path, "{weave: {project: team/ppe}}").all_of_it()
    assert follow_once(run) == 0
    roots = {
        call["display_name"]: call for call in online.calls.values() if "/op/Evaluation.evaluate:" in call["op_name"]
    }
    assert set(roots) == {"run epoch-001", "run epoch-002", "run test"}
    assert roots["run epoch-001"]["inputs"]["self"] == roots["run epoch-002"]["inputs"]["self"]
    summary = roots["run test"]["output"]
    assert summary["format"]["schema_valid"]["true_fraction"] == 0.75
    assert summary["greedy"]["mse_norm"]["mean"] == pytest.approx(0.005)
    assert summary["posterior_mean"]["mae_raw"]["mean"] == pytest.approx(2.0)
    assert summary["calibrated"]["mae_raw"]["mean"] == pytest.approx(1.0)
    assert "calibrated" not in roots["run epoch-001"]["output"], "epochs are decoded before anything is calibrated"
    rejected = [call for call in traces(online) if call["output"]["model"]["output_parsed"] is None]
    assert len(rejected) == 3
    assert all(call["output"]["error"] == {"per_dim": None, "mse": None} for call in rejected)


def test_without_a_server_the_log_waits_and_is_sent_once(tmp_path, online, monkeypatch):
    """Offline runs must lose no trace, and a second sync must not send any twice."""
    run = WrittenRun(tmp_path, "{weave: {project: team/ppe}}").all_of_it()
    assert follow_once(run, mode="offline") == 0
    assert online.requests == []
    assert [path.name.rpartition("-")[0] for path in waiting(run)] == ["epoch-001", "epoch-002", "test"]
    before = [path.read_bytes() for path in waiting(run)]
    assert follow_once(run, mode="offline") == 0
    assert [path.read_bytes() for path in waiting(run)] == before, "written again, with other ids"
    assert follow_once(run, mode="online") == 0
    assert len(online.calls) == expected_calls("valid", "valid", "test")
    assert waiting(run) == []
    sent = len(online.requests)
    assert follow_once(run, mode="online") == 0
    assert len(online.requests) == sent


def test_a_server_that_fails_midway_loses_and_doubles_nothing(tmp_path, online, monkeypatch):
    """The SDK's own sender drops what the server refused; ours must go on where it stopped, inside an evaluation."""
    monkeypatch.setenv("WEAVE_RETRY_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(weave_send, "BATCH_CALLS", 4)
    run = WrittenRun(tmp_path, "{weave: {project: team/ppe}}").all_of_it()
    place = Place(run.run, "weave")
    place.folder.mkdir()
    place.run_id.write_text("run-1")

    def update() -> None:
        WeaveTraces(RunFolder(run.recipe, run.data, run.run), place, run.recipe.track).update()

    for batches, arrived in ((2, 8), (4, 15)):
        online.fail_after_batches = batches
        with pytest.raises(Exception, match="told to fail"):
            update()
        assert len(online.calls) == arrived
    online.fail_after_batches = None
    update()
    assert len(online.calls) == expected_calls("valid", "valid", "test")
    assert online.repeated_calls == online.dangling == []
    assert list((place.folder / "weave").iterdir()) == []


def test_the_rate_takes_the_same_rows_every_time():
    """A random draw per evaluation would compare different rows of two epochs."""
    rows = [{"id": f"{number:016x}"} for number in range(2000)]
    kept = traced_rows(rows, 0.3)
    assert 0.26 < len(kept) / len(rows) < 0.34
    assert traced_rows(rows[::-1], 0.3) == kept[::-1]
    assert all(row in traced_rows(rows, 0.5) for row in kept)
    assert traced_rows(rows, 1.0) == rows
    assert len(traced_rows(rows[:5], 1e-9)) == 1


def test_online_without_a_key_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = WrittenRun(tmp_path, "{weave: {project: team/ppe}}").all_of_it()
    assert follow_once(run, mode="online") == 1
    assert Place(run.run, "weave").problem.read_text() == "no W&B key: set WANDB_API_KEY, or run `wandb login`\n"
