"""`ppe-lora serve FOLDER@URL`: behind vLLM's interface a model answers as the same folder does in our own process."""

import asyncio
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers import AutoModelForCausalLM

from ppe_lora.artifacts import write_json
from ppe_lora.errors import ModelError
from ppe_lora.export.contract import read_contract, write_contract
from ppe_lora.export.parity import copy_certificate
from ppe_lora.serving.backend import Ask, Reply
from ppe_lora.serving.elsewhere import Elsewhere
from tests.garbage_server import COMMON, Garbage, GarbageServer
from tests.runs import TASK, make_rows
from tests.serving import Scripted, serving
from tests.teacher_servers import OpenAIServer, serve

REQUESTS = [row.request for row in make_rows(6, seed=5)]
FITTED = {
    "keys": ["a", "b"], "width": 1.5, "coverage": 0.8, "rows": 24, "cv_mse_norm": {"affine": 0.05, "blend": 0.03},
}  # fmt: skip
AFFINE = FITTED | {"kind": "affine", "weight": [[0.8, 0.0], [0.0, 0.7]], "offset": [11.0, 3.0]}
BLEND = FITTED | {"kind": "blend", "weight": [[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]], "offset": [0.0, 0.0]}


class Vllm(OpenAIServer):
    """vLLM's completions of token ids with the log-probabilities of chosen tokens, from the model itself; and greedy
    text that nobody should take for them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(models=("run",), answer=lambda body: '{"a":1,"b":1}')
        self._net = AutoModelForCausalLM.from_pretrained(folder).eval()

    def routes(self) -> list[Route]:
        return [*super().routes(), Route("/v1/completions", self.complete, methods=["POST"])]

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        choices = []
        for index, ids in enumerate(body["prompt"]):
            with torch.no_grad():
                log_p_V = self._net(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            top = {f"token_id:{token}": float(log_p_V[token]) for token in body["logprob_token_ids"]}
            choices.append({"index": index, "text": "", "logprobs": {"top_logprobs": [top]}})
        return JSONResponse({"choices": choices[::-1]})


@pytest.fixture(scope="module")
def engine(served_run: Path) -> Iterator[str]:
    with serve(Vllm(served_run / "merged")) as url:
        yield f"{url}/v1#run"


def export(served_run: Path, folder: Path, read_out: str, calibration: dict[str, Any] | None) -> Path:
    """The merged model as it would be with another read-out and calibration."""
    shutil.copytree(served_run / "merged", folder)
    write_contract(folder, read_contract(folder).model_copy(update={"read_out": read_out}))
    (folder / "calibration.json").unlink()
    (folder / "head.npz").unlink(missing_ok=True)
    if calibration is not None:
        write_json(folder / "calibration.json", calibration)
    copy_certificate(folder, folder)
    return folder


def answers(source: str) -> list[dict[str, Any]]:
    with serving(source) as running, running.client() as client:
        body = {"requests": [{"request": text} for text in REQUESTS]}
        return client.post("/api/interpreter/batch", json=body).json()["results"]


@pytest.mark.parametrize("calibration", [None, AFFINE])
@pytest.mark.parametrize("read_out", ["greedy", "posterior_mean", "calibrated"])
def test_the_recipes_read_out_comes_through_an_engine(
    served_run: Path, tmp_path: Path, engine: str, read_out: str, calibration: dict[str, Any] | None
) -> None:
    """Greedy text in its place is a valid answer, too, only a worse one."""
    folder = export(served_run, tmp_path / "m", read_out, calibration)
    here, there = answers(f"m={folder}"), answers(f"m={folder}@{engine}")
    assert [one["parameters"] for one in there] == [one["parameters"] for one in here]
    assert len({json.dumps(one["parameters"]) for one in here}) > 1
    for one, other in zip(here, there, strict=True):
        assert other["uncertainty"]["calibrated"] is (calibration is not None)
        for key, spread in one["uncertainty"]["scores"].items():
            assert other["uncertainty"]["scores"][key] == pytest.approx(spread, abs=0.02)


def test_an_engine_answers_with_the_correction_that_needs_no_head_and_says_so(
    served_run: Path, tmp_path: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of a blend would be a wrong answer, and the width of its intervals belongs to it."""
    both = BLEND | {"width": 9.0, "without_head": AFFINE}
    there = answers(f"m={export(served_run, tmp_path / 'm', 'calibrated', both)}@{engine}")
    assert (
        "run answers without the head, which only our own decoder reads: mse_norm on validation rows 0.0500, with the "
        "head 0.0300" in " ".join(capsys.readouterr().out.split())
    )
    here = answers(f"m={export(served_run, tmp_path / 'plain', 'calibrated', AFFINE)}")
    assert [one["parameters"] for one in there] == [one["parameters"] for one in here]
    for one, other in zip(here, there, strict=True):
        for key, spread in one["uncertainty"]["scores"].items():
            assert other["uncertainty"]["scores"][key] == pytest.approx(spread, abs=0.02)


def test_an_engine_is_not_given_half_of_a_correction(served_run: Path, tmp_path: Path, engine: str) -> None:
    """A folder from before engines had a correction of their own."""
    folder = export(served_run, tmp_path / "m", "calibrated", BLEND)
    with pytest.raises(ModelError, match="expected a correction for engines, which do not read the head; got none"):
        answers(f"m={folder}@{engine}")


def test_an_engine_that_gives_text_only_is_named(served_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Our own server is one: behind the OpenAI protocol it has no token ids."""
    with serving({"run": Scripted(30, 40)}) as other:
        there = answers(f"m={served_run}@{other.url}/v1#run")
    assert "run answers with greedy text, not the calibrated of run: " in capsys.readouterr().out
    assert [one["parameters"] for one in there] == [{"a": 30, "b": 40}] * len(REQUESTS)
    assert there[0]["uncertainty"] is None


def test_a_request_that_no_row_was_like_is_refused_before_the_engine(served_run: Path, engine: str) -> None:
    with serving(f"m={served_run}@{engine}") as running, running.client() as client:
        response = client.post("/api/interpreter", json={"request": "much " * 600})
    assert response.status_code == 422
    assert "tokens, as in training; got" in response.json()["error"]["message"]


def test_an_engine_that_fails_while_it_serves_is_no_bug_of_ours(served_run: Path) -> None:
    """It lists the model, and answers no completions."""
    with (
        serve(OpenAIServer(models=("run",))) as url,
        serving(f"m={served_run}@{url}/v1#run") as running,
        running.client() as client,
    ):
        response = client.post("/api/interpreter", json={"request": REQUESTS[0]})
        assert client.get("/ready").status_code == 200
    assert response.status_code == 502
    assert response.json()["error"]["message"] == "the model's engine does not answer"


def test_an_exported_adapter_alone_has_no_tokenizer(served_run: Path, engine: str) -> None:
    with pytest.raises(Exception, match="expected the model's tokenizer; got none; name the run, or its merged/"):
        serving(f"m={served_run / 'adapter'}@{engine}").__enter__()


ENGINES = {
    "vllm": "/v1/completions",
    "llamacpp": "/completion",
    "library": "/v1/chat/completions",  # Ollama, which gives text only
}
WRONG = {
    "no choice": Garbage(lambda path, body: {"choices": []}),
    "null": Garbage(lambda path, body: {"choices": None, "completion_probabilities": None}),
    "NaN": Garbage(b'{"choices": [{"index": 0, "logprobs": {"top_logprobs": [{"token_id:5": NaN}]}}]}'),
    "another text": Garbage(lambda path, body: {"choices": [{"message": {"content": "as you like"}}]}),
}


@pytest.mark.parametrize("owner", ENGINES)
def test_whatever_an_engine_answers_clients_get_502_or_504(
    served_run: Path, owner: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Six of seven malformed answers of a vLLM were 500, each with two tracebacks."""

    def right(path: str, body: Any) -> Any:
        return {"data": [{"id": "run", "owned_by": owner}]} if path == "/v1/models" else {"total_slots": 2}

    engine = GarbageServer(COMMON["no JSON"], right, (ENGINES[owner],))
    statuses: dict[str, int] = {}
    with (
        serve(engine) as url,
        serving(f"m={served_run}@{url}/v1#run", answer_timeout_s=1.5) as running,
        running.client() as client,
    ):
        for case, garbage in {**COMMON, **WRONG}.items():
            engine.garbage = garbage
            response = client.post("/api/interpreter", json={"request": REQUESTS[0]})
            statuses[case] = response.status_code
            assert response.json()["error"]["type"] == ("timeout" if response.status_code == 504 else "engine_error")
    assert statuses == {case: 504 if case == "a byte a second" else 502 for case in [*COMMON, *WRONG]}
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


class Broken(Elsewhere):
    """A backend with a bug of ours, or a client of an engine that lets an exception through."""

    task = TASK
    cancelled = 0

    async def _answer(self, ask: Ask) -> Reply:
        if ask.request == "wait":
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        raise KeyError("total_slots")

    async def close(self) -> None:
        pass


def test_one_broken_answer_is_one_line_of_the_log_and_ends_its_batch(caplog: pytest.LogCaptureFixture) -> None:
    """The other requests of the batch went on, to an engine that nobody waited for."""
    backend = Broken(rows=8, timeout_s=20)
    with serving({"m": backend}) as running, running.client() as client:
        response = client.post("/api/interpreter/batch", json={"requests": [{"request": one} for one in ("wait", "a")]})
    assert response.status_code == 502
    assert backend.cancelled == 1
    assert backend.waiting == 0
    (line,) = [record.getMessage() for record in caplog.records]
    failure = response.json()["error"]["message"].rpartition(" ")[2]
    assert line.startswith(f"failure {failure}: reading the engine's answer: KeyError: \"'total_slots'\"; at ")
