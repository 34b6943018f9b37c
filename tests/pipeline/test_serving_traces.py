"""Traces of answered requests: each arrives at a loopback server of Weave once, and no request pays for it."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ppe_lora import cli
from ppe_lora.serving import traces as traces_module
from ppe_lora.serving.backend import ApiError, Reply, Spread
from ppe_lora.tracking import follower
from ppe_lora.tracking.served_traces import OP
from tests.serving import Running, Scripted, serving
from tests.tracker_server import Received, broken_server, trace_server

PROJECT = "team/ppe"
SLOW_S = 120.0  # of a busy machine: a process starts, and imports Weave


@pytest.fixture
def weave(monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    with trace_server() as (url, received):
        point_to(url, monkeypatch)
        yield received


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WF_TRACE_SERVER_URL", url)


def wait_for(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SLOW_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def post(running: Running, *requests: str) -> list[int]:
    with running.client() as client:
        return [client.post("/api/interpreter", json={"request": said}).status_code for said in requests]


def dropped(running: Running) -> float:
    with running.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("ppe_lora_dropped_traces_total ")).split()[1])


class Sure(Scripted):
    """A model with distributions."""

    async def answer(self, asks: list[Any]) -> list[Reply]:
        spread = {key: Spread(1.5, 5.0, 15.0) for key in self.task.keys}
        return [reply._replace(spread=spread) for reply in await super().answer(asks)]


def test_every_answered_request_is_a_trace(tmp_path: Path, weave: Received) -> None:
    """A trace that is missing, doubled or of a refused request makes the picture of what people ask for false."""
    refusing = Scripted(error=ApiError(503, "full", "full"))
    with serving({"m": Sure(), "full": refusing}, trace=PROJECT, trace_dir=str(tmp_path)) as running:
        assert post(running, "静かな曲", "a loud one") == [200, 200]
        with running.client() as client:
            batch = {"requests": [{"request": "soft", "context": {"weather": "rain"}}, {"request": "hard"}]}
            assert client.post("/api/interpreter/batch", json=batch).status_code == 200
            assert client.post("/api/interpreter", json={"request": "no", "model": "full"}).status_code == 503
        assert dropped(running) == 0
    wait_for(lambda: len(weave.calls) == 4)
    wait_for(lambda: not list(tmp_path.glob("*/*.jsonl")))
    assert weave.repeated_calls == weave.dangling == []
    calls = {call["inputs"]["input"]["request_text"]: call for call in weave.calls.values()}
    assert set(calls) == {"静かな曲", "a loud one", "soft", "hard"}
    assert all(f"/op/{OP}:" in call["op_name"] for call in calls.values())
    one = calls["soft"]
    assert one["inputs"]["input"] == {"request_text": "soft", "context": {"weather": "rain"}, "language": "en"}
    assert one["attributes"]["model_id"] == "m"
    assert one["output"]["model"]["output_parsed"] == {"a": 10, "b": 20}
    assert one["output"]["model"]["uncertainty"]["a"] == {"sd": 1.5, "low": 5.0, "high": 15.0}
    assert one["output"]["latency_ms"] >= 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hangs", "500"])
def test_a_broken_tracker_costs_no_request_and_loses_no_trace(
    tmp_path: Path, weave: Received, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Traces wait on disk for the next server; answers wait for nothing."""
    started: list[subprocess.Popen[bytes]] = []

    def launch(*arguments: Any) -> subprocess.Popen[bytes]:
        started.append(follower.launch(*arguments))
        return started[-1]

    with broken_server(how) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(traces_module, "launch", launch)
        patch.setenv("WEAVE_RETRY_MAX_ATTEMPTS", "1")
        point_to(url, patch)
        with serving({"m": Scripted()}, trace=PROJECT, trace_dir=str(tmp_path)) as running:
            assert post(running, *(f"request {number}" for number in range(20))) == [200] * 20
            wait_for(lambda: list(tmp_path.glob("weave/*.jsonl")))
        started[0].kill()  # else it would try for half an hour
        started[0].wait()
    assert list(tmp_path.glob("*/*.jsonl"))
    with serving({"m": Scripted()}, trace=PROJECT, trace_dir=str(tmp_path)):
        wait_for(lambda: len(weave.calls) == 20)
    assert weave.repeated_calls == []


def test_what_does_not_fit_is_dropped_and_counted(
    tmp_path: Path, weave: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue without an end fills the memory, a full disk must not fail an answer, and both must show."""
    monkeypatch.setattr(traces_module, "_QUEUE", 2)
    monkeypatch.setattr(traces_module, "_SEGMENT_S", 3600.0)
    with serving({"m": Scripted()}, trace=PROJECT, trace_dir=str(tmp_path)) as running:
        assert post(running, *"abcde") == [200] * 5
        assert dropped(running) == 3
    monkeypatch.setattr(traces_module, "_SEGMENT_S", 0.05)
    monkeypatch.setattr(traces_module, "_MOST_FILES", 0)
    with serving({"m": Scripted()}, trace=PROJECT, trace_dir=str(tmp_path)) as running:
        assert post(running, "f") == [200]
        wait_for(lambda: dropped(running) == 1)


def test_the_switch_is_checked_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slip in the project's name would else be found by the sending process, where nobody looks."""
    monkeypatch.setattr("sys.argv", ["ppe-lora", "serve", "nowhere", "--trace", "ppe"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: --trace: expected entity/project, for example my-team/ppe; got 'ppe'\n"
