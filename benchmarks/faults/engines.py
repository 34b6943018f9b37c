"""Garbage from the engine behind `ppe-lora serve FOLDER@URL`: clients get 502 or 504 with a code, the log no traceback.

Ten ways and more to answer wrongly, of vLLM, llama.cpp and an engine that only chats (Ollama), over loopback.
"""

import logging
import sys
from pathlib import Path
from typing import Any

from case import Case

sys.path.insert(0, str(Path(__file__).parents[2]))

from ppe_lora.export.contract import Contract, write_contract
from ppe_lora.export.parity import Reading, write_certificate
from tests.garbage_server import COMMON, Garbage, GarbageServer
from tests.runs import TASK, make_rows
from tests.serving import serving
from tests.teacher_servers import serve
from tests.tiny import tiny_llama

ENGINES = {
    "vLLM": ("vllm", "/v1/completions"),
    "llama.cpp": ("llamacpp", "/completion"),
    "Ollama": ("library", "/v1/chat/completions"),
}
_GOOD = "a good answer"
SCORES: dict[str, Any] = {
    "null": None,
    "NaN": float("nan"),
    "words": "much",
    "infinity": float("inf"),
}


def cases(quick: bool, scratch: Path) -> list[Case]:
    """Every kind of garbage from every engine, one request each."""
    folder = tiny_llama(scratch / "model")
    write_contract(folder, Contract(name="m", task=TASK, slots="request", read_out="posterior_mean", max_tokens=256))
    write_certificate(folder, make_rows(1, seed=5), [Reading("{}")])
    return [case for engine in ENGINES for case in _of_engine(engine, folder)]


def _of_engine(engine: str, folder: Path) -> list[Case]:
    owner, path = ENGINES[engine]
    server = GarbageServer(Garbage(b""), lambda at, body: _right(at, owner), (path,))
    found = []
    with serve(server) as url, serving(f"m={folder}@{url}/v1#m", answer_timeout_s=2.0) as running:
        for name, garbage in (COMMON | _of_its_own(engine) | {_GOOD: _good(engine)}).items():
            server.garbage = garbage
            log = _Errors()
            with running.client() as client:
                answer = client.post("/api/interpreter", json={"request": "quiet and warm"})
            observed = f"{answer.status_code}" + (f", log: {log.lines[0][:80]}" if log.lines else "")
            log.close()
            wanted = (200,) if name == _GOOD else (502, 504)
            passed = answer.status_code in wanted and not log.lines
            expected = f"{' or '.join(map(str, wanted))}, no traceback"
            found.append(Case(f"{engine}, {name}", expected, observed, passed))
    return found


def _right(at: str, owner: str) -> Any:
    return {"total_slots": 2} if at == "/props" else {"data": [{"id": "m", "owned_by": owner}]}


def _of_its_own(engine: str) -> dict[str, Garbage]:
    """What only this engine's answers can have wrong."""
    if engine == "vLLM":
        kinds = {
            "no choice": lambda body: [],
            "one choice too few": lambda body: _vllm(body, -1.0)[1:],
            "no log-probabilities": lambda body: [{"index": index} for index in range(len(body["prompt"]))],
            "other tokens": lambda body: _vllm({**body, "logprob_token_ids": [999]}, -1.0),
            **{name: lambda body, value=value: _vllm(body, value) for name, value in SCORES.items()},
        }
        return {name: Garbage(lambda at, body, kind=kind: {"choices": kind(body)}) for name, kind in kinds.items()}
    if engine == "llama.cpp":
        places = {
            "no place": [],
            "no token": [{"top_probs": []}],
            "other tokens": [{"top_probs": [{"id": 999, "prob": 1.0}]}],
            **{name: [{"top_probs": [{"id": 5, "prob": value}]}] for name, value in SCORES.items()},
        }
        return {
            name: Garbage(lambda at, body, given=given: {"completion_probabilities": given})
            for name, given in places.items()
        }
    texts = {
        "no text": None,
        "chatter": "Sure!",
        "one key": '{"a":1}',
        "out of range": '{"a":1,"b":900}',
        "NaN": '{"a":NaN}',
    }
    return {
        name: Garbage(lambda at, body, text=text: {"choices": [{"message": {"content": text}}]})
        for name, text in texts.items()
    }


def _good(engine: str) -> Garbage:
    """What it answers when nothing is wrong: else the cases above would prove nothing."""
    if engine == "vLLM":
        return Garbage(lambda at, body: {"choices": _vllm(body, -1.0)})
    if engine == "llama.cpp":
        return Garbage(lambda at, body: {"completion_probabilities": [{"top_probs": [_first_legal(body)]}]})
    return Garbage(lambda at, body: {"choices": [{"message": {"content": '{"a":1,"b":2}'}}]})


def _first_legal(body: dict[str, Any]) -> dict[str, Any]:
    return {"id": body["logit_bias"][0][0], "prob": 1.0}


def _vllm(body: dict[str, Any], value: Any) -> list[dict[str, Any]]:
    top = {f"token_id:{token}": value for token in body["logprob_token_ids"]}
    return [{"index": index, "logprobs": {"top_logprobs": [top]}} for index in range(len(body["prompt"]))]


class _Errors(logging.Handler):
    """Tracebacks that the server logs while it is open."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []
        for logger in self._loggers():
            logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def close(self) -> None:
        for logger in self._loggers():
            logger.removeHandler(self)
        super().close()

    @staticmethod
    def _loggers() -> list[logging.Logger]:
        return [logging.getLogger(name) for name in (None, "uvicorn", "uvicorn.error", "asyncio")]
