"""`ppe-lora serve` over real HTTP: answers are those of the evaluation, whoever asks, however many ask at once."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from openai import NotFoundError, OpenAI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ppe_lora.artifacts import write_manifest
from ppe_lora.export.contract import contract_of, read_contract, uncorrected, write_contract
from ppe_lora.recipe import load_recipe
from ppe_lora.serving.backend import ApiError
from ppe_lora.serving.reading import Reader, find_calibration
from tests.command import ppe_lora
from tests.evaluations import predictions as made_up
from tests.evaluations import write_run
from tests.runs import TASK, as_measured
from tests.serving import Running, Scripted, serving
from tests.teacher_servers import OpenAIServer, serve

ROOT = Path(__file__).parents[2]
REQUEST = {"request": "tiny one, huge other, case 4711"}


@pytest.fixture(scope="module")
def server(served_run: Path, speaker: Path) -> Iterator[Running]:
    """The merged model, its adapter, and the model it was tuned from."""
    adapter_only = served_run.parent / "adapter_only"
    adapter_only.mkdir(exist_ok=True)
    for path in served_run.iterdir():
        if path.name != "merged" and not (adapter_only / path.name).exists():
            (adapter_only / path.name).symlink_to(path)
    with serving([f"tuned={served_run}", f"adapter={adapter_only}", f"base={speaker}"]) as running:
        yield running


def predictions(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "test" / "eval_predictions.jsonl").read_text().splitlines()]


def test_an_answer_has_its_uncertainty_its_model_and_its_time(server):
    with server.client() as client:
        response = client.post("/api/interpreter", json=REQUEST)
    assert response.status_code == 200
    found = response.json()
    assert list(found) == ["parameters", "uncertainty", "model_id", "latency_ms"]
    assert list(found["parameters"]) == ["a", "b"]
    assert all(isinstance(value, int) and 0 <= value <= 100 for value in found["parameters"].values())
    assert (found["uncertainty"]["coverage"], found["uncertainty"]["calibrated"]) == (0.8, True)
    for key, value in found["parameters"].items():
        score = found["uncertainty"]["scores"][key]
        assert score["low"] - 0.5 <= value <= score["high"] + 0.5
        assert score["sd"] > 0
    assert found["model_id"] == "tuned"
    assert found["latency_ms"] > 0


def test_what_is_served_is_what_was_evaluated(server, served_run):
    """Another prompt, read-out or rounding than the evaluation's makes its figures a fiction. 24 test rows asked at
    once, so that they are decoded in batches: each calibrated answer, to the unit."""
    rows = predictions(served_run)
    expected = [list(row["calibrated"].values()) for row in rows]
    with server.client() as client, ThreadPoolExecutor(len(rows)) as pool:
        ask = lambda row: client.post("/api/interpreter", json={"request": row["request"]}).json()  # noqa: E731
        answers = list(pool.map(ask, rows))
    assert [list(answer["parameters"].values()) for answer in answers] == expected
    calibration = find_calibration(served_run, TASK)
    assert [answer["uncertainty"]["scores"]["b"]["sd"] for answer in answers] == pytest.approx(
        [calibration.deviation(row["posterior_sd"]["b"], TASK) for row in rows], abs=0.011 * calibration.width
    )
    batches = server.metrics.registry.get_sample_value("ppe_lora_batch_rows_sum", {"model": "tuned"})
    passes = server.metrics.registry.get_sample_value("ppe_lora_batch_rows_count", {"model": "tuned"})
    assert batches > passes  # some were decoded together


def test_requests_are_tokenized_beside_the_event_loop(server, monkeypatch):
    """Forty long texts kept everybody waiting for 2.5 s; the wait is part of the latency that the client is told."""
    threads = []
    prompt = Reader.prompt

    def slow(self, ask):
        threads.append(threading.current_thread().name)
        time.sleep(0.2)
        return prompt(self, ask)

    monkeypatch.setattr(Reader, "prompt", slow)
    with server.client() as client:
        answer = client.post("/api/interpreter", json=REQUEST).json()
    assert [name.partition("_")[0] for name in threads] == ["aside"]
    assert answer["latency_ms"] > 200


def test_adapter_and_merged_weights_answer_alike_and_the_base_is_another_model(server):
    requests = [{"request": f"{word} one, huge other, case 1"} for word in ("tiny", "small", "fair", "large")]
    with server.client() as client:
        answers = {}
        for model in ("tuned", "adapter", "base"):
            body = {"requests": requests, "model": model}
            found = client.post("/api/interpreter/batch", json=body).json()
            assert [one["model_id"] for one in found["results"]] == [model] * 4
            answers[model] = [one["parameters"] for one in found["results"]]
        calibrated = client.post("/api/interpreter", json={**REQUEST, "model": "base"}).json()["uncertainty"]
    assert answers["tuned"] == answers["adapter"]
    assert answers["tuned"] != answers["base"]
    assert calibrated["calibrated"] is False


def test_language_and_context_make_the_prompt_of_training(served_run, speaker):
    """A Japanese request with the English instruction is a prompt the model has never seen."""
    backend = Scripted()
    with serving({"m": backend}) as running, running.client() as client:
        for body in (
            {"request": "雨の夜", "context": {"weather": "rain"}},
            {"request": "lo-fi beats"},
            {"request": "lo-fi beats", "language": "ja"},
        ):
            assert client.post("/api/interpreter", json=body).status_code == 200
    assert backend.asked == [
        ("雨の夜", "ja", {"weather": "rain"}),
        ("lo-fi beats", "en", None),
        ("lo-fi beats", "ja", None),
    ]


def test_the_real_openai_client_gets_its_answers(server):
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["tuned", "adapter", "base"]
    messages = TASK.messages(REQUEST["request"], "en")
    whole = client.chat.completions.create(model="tuned", messages=messages, temperature=0.7, n=1)
    text = whole.choices[0].message.content
    with server.client() as plain:
        assert text == TASK.render(plain.post("/api/interpreter", json=REQUEST).json()["parameters"])
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens > 40
    chunks = list(client.chat.completions.create(model="tuned", messages=messages, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "stop"
    with pytest.raises(NotFoundError, match="expected one of tuned, adapter, base; got 'gpt-4o'"):
        client.chat.completions.create(model="gpt-4o", messages=messages)


def test_an_engine_by_its_address_answers_as_the_model_behind_it(server, served_run):
    """Our own server as the engine: the same task, prompt and answer through the OpenAI protocol; no uncertainty."""
    sources = [f"here={served_run}", f"there={served_run}@{server.url}/v1#tuned"]
    with serving(sources) as front, front.client() as client:
        bodies = [{**REQUEST, "model": name} for name in ("here", "there")]
        answers = [client.post("/api/interpreter", json=body).json() for body in bodies]
    assert answers[0]["parameters"] == answers[1]["parameters"]
    assert answers[1]["uncertainty"] is None


def test_an_engine_that_answers_prose_is_no_answer(served_run):
    """Without guided decoding an engine may say anything; nothing of it may reach the game as a number."""

    class Ollama(OpenAIServer):
        async def list_models(self, request: Request) -> Response:
            return JSONResponse({"object": "list", "data": [{"id": "run", "owned_by": "library"}]})

    prose = Ollama(models=("run",), answer=lambda body: '{"mood":1,"prose":2}')
    with serve(prose) as url, serving(f"m={served_run}@{url}/v1#run") as front, front.client() as client:
        response = client.post("/api/interpreter", json=REQUEST)
    assert response.status_code == 502
    assert response.json()["error"]["message"] == "the model's engine gave no valid answer: missing key"


def test_the_shadow_model_only_watches(tmp_path):
    """A shadow that fails or is slow must cost the player nothing, and the log must say what it would have answered."""
    log = tmp_path / "shadow.jsonl"
    shadow = Scripted(30, 40, seconds=0.3)
    with (
        serving({"m": Scripted(), "s": shadow}, shadow="s", shadow_log=str(log)) as running,
        running.client() as client,
    ):
        first = client.post("/api/interpreter", json=REQUEST).json()
        wait_for(lambda: log.read_text())
        shadow.error = ApiError(503, "overloaded", "too many")
        client.post("/api/interpreter", json=REQUEST)
        client.post("/api/interpreter", json={**REQUEST, "model": "s"})
    assert first["parameters"] == {"a": 10, "b": 20}
    assert first["latency_ms"] < 250
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["answers"] for line in lines] == [
        {"m": {"a": 10, "b": 20}, "s": {"a": 30, "b": 40}},
        {"m": {"a": 10, "b": 20}, "s": None},
    ]
    assert [line["problem"] for line in lines] == [None, "too many"]
    assert lines[0]["request"] == REQUEST["request"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_costs_comparisons_and_says_so_once(tmp_path, caplog, monkeypatch):
    """It ended each comparison in a traceback, and the server's end, too."""
    full = lambda *_, **__: Path("/dev/full").open("ab", buffering=0)  # noqa: E731, SIM115
    monkeypatch.setattr("ppe_lora.serving.shadow.open", full, raising=False)
    shadow = {"shadow": "s", "shadow_log": str(tmp_path / "shadow.jsonl")}
    with serving({"m": Scripted(), "s": Scripted()}, **shadow) as running, running.client() as client:
        for _ in range(3):
            assert client.post("/api/interpreter", json=REQUEST).status_code == 200
    assert [record.getMessage() for record in caplog.records] == [
        "shadow's log: expected room; got: No space left on device; comparisons are lost until there is"
    ]


def test_health_readiness_and_metrics():
    backend = Scripted()
    with serving({"m": backend}) as running, running.client() as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").status_code == 200
        client.post("/api/interpreter", json=REQUEST)
        client.get("/not/a/path")
        text = client.get("/metrics").text
        backend.error = ValueError("the model is gone")
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
    assert 'ppe_lora_answers_total{model="m"} 1.0' in text
    assert 'ppe_lora_responses_total{path="/api/interpreter",status="200"} 1.0' in text
    assert 'ppe_lora_responses_total{path="other",status="404"} 1.0' in text
    assert 'ppe_lora_waiting{model="m"} 0.0' in text


def test_a_merged_folder_alone_is_enough(served_run, tmp_path):
    """Weights are copied to a server; the run, the recipe and the data stay behind."""
    moved = tmp_path / "moved"
    (served_run / "merged").rename(moved)
    try:
        with serving(str(moved)) as running, running.client() as client:
            assert client.get("/api/models").json()["models"][0]["id"] == "run"
            assert client.post("/api/interpreter", json=REQUEST).json()["uncertainty"]["calibrated"] is True
    finally:
        moved.rename(served_run / "merged")


BAD_STARTS = {
    "no such folder": (["nowhere"], "nowhere: expected a run or an export; got neither; finished runs: "),
    "no name": (["{run}", "--model", "=x"], "'=x': expected [NAME=]FOLDER or [NAME=]FOLDER@URL; got no name"),
    "twice": (["{run}", "--model", "run={run}"], "run: expected a name of its own for each model; got two"),
    "default": (["{run}", "--default", "x"], "--default: expected one of run; got 'x'"),
    "shadow": (["{run}", "--shadow", "x"], "--shadow: expected one of run; got 'x'"),
    "its own shadow": (["{run}", "--shadow", "run"], "--shadow: expected another model than the default one"),
    "no log": (
        ["{run}", "--model", "x={run}", "--shadow", "x", "--shadow-log", "{run}/best"],
        "/best: Is a directory",
    ),
    "open to all": (["{run}", "--host", "0.0.0.0"], "expected an API key in PPE_LORA_API_KEY"),
    "no proxy": (
        ["{run}", "--trusted-proxy", "*"],
        "--trusted-proxy: expected an address or a network, such as 127.0.0.1 or 10.0.0.0/8; got '*'",
    ),
    "port taken": (["{run}", "--port", "{taken}"], "expected a free address of this machine; got: Address already in"),
    "no engine": (["{run}@http://127.0.0.1:9/v1"], "start a server, for example `vllm serve run --port 9`"),
}


@pytest.mark.parametrize("case", BAD_STARTS)
def test_what_cannot_be_served_says_why(served_run, monkeypatch, capsys, case):
    monkeypatch.delenv("PPE_LORA_API_KEY", raising=False)
    arguments, message = BAD_STARTS[case]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        filled = [one.replace("{run}", str(served_run)).replace("{taken}", port) for one in arguments]
        assert ppe_lora("serve", *([] if case == "port taken" else ["--port", "0"]), *filled) == 2
    assert message in capsys.readouterr().err


def test_files_that_do_not_belong_to_the_model_are_refused(served_run, tmp_path, capsys):
    """A calibration, contract or head of another model would turn right distributions into wrong numbers."""
    folder = tmp_path / "m"
    shutil.copytree(served_run / "merged", folder)
    for name in ("calibration.json", "ppe_lora.json", "model.safetensors"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before + b" ")
        assert ppe_lora("serve", "--port", "0", str(folder)) == 2
        assert f"expected the files that parity.json certifies; got others: {name} differs" in capsys.readouterr().err
        (folder / name).write_bytes(before)
    (folder / "parity.json").unlink()
    assert ppe_lora("serve", "--port", "0", str(folder)) == 2
    assert "expected an export with its parity.json; got none" in capsys.readouterr().err


def test_a_calibration_without_the_head_that_it_uses_is_refused(served_run, tmp_path, capsys):
    """Served without it, every answer would be another one than the evaluation measured."""
    folder = tmp_path / "run"
    folder.mkdir()
    for path in served_run.iterdir():
        if path.name not in ("merged", "test", "calibration.json", "head.npz"):
            (folder / path.name).symlink_to(path)
    stored = json.loads((served_run / "calibration.json").read_text(encoding="utf-8"))
    stored |= {"kind": "head", "weight": [[0, 0, 1, 0], [0, 0, 0, 1]]}
    (folder / "calibration.json").write_text(json.dumps(stored), encoding="utf-8")
    as_measured(folder)
    assert ppe_lora("serve", "--port", "0", str(folder)) == 2
    assert "expected the head that calibration.json uses; got none" in capsys.readouterr().err


def test_a_run_without_its_correction_says_so(tmp_path, monkeypatch, capsys):
    """Trained and never evaluated, a run that names `calibrated` was served and exported uncorrected in silence."""
    monkeypatch.chdir(tmp_path)
    run = write_run(Path("checkpoints/run"), made_up([1, 2]), "evaluate.read_out=calibrated", "student.model=./gone")
    write_manifest(Path("data/d"), {}, dataset_version="v")

    def said(*command: str) -> str:
        assert ppe_lora(*command) == 2  # there is no such model
        return " ".join(capsys.readouterr().out.split())

    words = "checkpoints/run: run answers with the posterior mean, uncorrected: "
    few = words + "it has fewer than the 20 validation rows that a correction is fitted on"
    never = words + "it has not been evaluated; `ppe-lora evaluate RECIPE` fits the correction"
    exporting = ("export", "checkpoints/run.yaml", "evaluate.read_out=calibrated", "student.model=./gone")
    assert (said("serve", str(run)), said(*exporting)) == (few, few)
    shutil.rmtree(run / "test")
    assert (said("serve", str(run)), said(*exporting)) == (never, never)
    assert said(*exporting, "evaluate.read_out=posterior_mean") == ""
    write_contract(run / "merged", contract_of(load_recipe(run / "config.yaml")))
    contract, merged = read_contract(run / "merged"), words.replace("run: ", "run/merged: ", 1)
    assert uncorrected(contract, run / "merged") == (
        f"{merged}it has not been evaluated; `ppe-lora evaluate RECIPE` fits the correction; then export again"
    )
    (run / "calibration.json").touch()
    assert uncorrected(contract, run / "merged") == (
        f"{merged}exported before it was evaluated; `ppe-lora export RECIPE` takes the correction along"
    )
    assert uncorrected(contract, run) is None


def test_sigterm_lets_running_requests_finish_and_refuses_new_ones(served_run):
    """The command itself. Half a request is sent, SIGTERM comes, the rest is sent: it is answered; a new one gets 503
    with a time to come back; then the process ends with status 0."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ppe_lora", "serve", str(served_run), "--port", "0"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/ answers with run", line)[1])
        body = json.dumps(REQUEST).encode()
        head = (
            "POST /api/interpreter HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", port), timeout=30) as begun:
            begun.sendall(head.encode() + body[:10])
            wait_for(lambda: httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200)
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: httpx2.get(f"http://127.0.0.1:{port}/ready").status_code == 503)
            late = httpx2.post(f"http://127.0.0.1:{port}/api/interpreter", json=REQUEST)
            assert (late.status_code, late.headers["retry-after"]) == (503, "5")
            assert httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200
            begun.sendall(body[10:])
            answer = begun.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert set(json.loads(answer.split(b"\r\n\r\n", 1)[1])["parameters"]) == {"a", "b"}
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()


def wait_for(happened) -> None:
    waiting = threading.Event()
    for _ in range(600):
        if happened():
            return
        waiting.wait(0.05)
    raise AssertionError("it did not happen")
