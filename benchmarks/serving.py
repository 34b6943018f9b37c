"""Serving: our decoder against `generate` behind the same API, alone and under load. Real processes, real HTTP.

    python benchmarks/serving.py [--quick] [--out DIR] [--model tiny|smollm2-135m] [--folder EXPORTED] [--seconds S]

The model is first taught the answer's format for a few steps (see decode_speed.py) and saved, unless an exported folder
is given, such as checkpoints/demo/merged. It is served twice: by `ppe-lora serve`, and by the same application around
`generate`, one request at a time. Alone: one client, requests to the two servers in turn. Load: 32 clients for a minute
against ours; each answer must be the one that the same request got alone. One score of thousands may round to its
neighbour, because a batch adds up in another order: `off_by_one` counts those answers, `wrong` all that differ by more.
Memory is the server's anonymous resident memory. Raw samples go to DIR, and the last printed line is one JSON object of
headline figures. `tiny` is a random Mistral of 384 x 8 layers.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import psutil
import torch
from decode_speed import TASK, load, make_requests, make_rows, teach_format
from models import device_name

from ppe_lora.export.contract import Contract, read_contract, write_contract
from ppe_lora.export.parity import write_certificate
from ppe_lora.serving.backend import ApiError, Ask, Reply
from ppe_lora.serving.batching import Batcher
from ppe_lora.serving.local import load_merged
from ppe_lora.serving.metrics import Metrics
from ppe_lora.serving.server import build_app, listen, make_server
from ppe_lora.serving.settings import Settings
from ppe_lora.student.decode import answer_token_limit, generate
from ppe_lora.tasks.scores import Rejected

CLIENTS = 32
TAUGHT_REQUESTS = 200


class GenerateBackend:
    """The model's own `generate`, one request at a time: what one would write without this project's decoder."""

    kind = "generate"
    waiting = 0

    def __init__(self, folder: Path) -> None:
        loaded = load_merged(folder, read_contract(folder))
        self._model, self._tokenizer = loaded.model, loaded.tokenizer
        self.task = loaded.contract.task
        self._limit = answer_token_limit(self.task, self._tokenizer)
        self._batcher: Batcher[Ask, Reply] = Batcher(self._decode, 1, 256, threading.Lock())

    @torch.inference_mode()
    def _decode(self, asks: Sequence[Ask]) -> list[Reply]:
        prompts = [
            self._tokenizer.prompt_ids(self.task.messages(ask.request, ask.language, ask.context)) for ask in asks
        ]
        replies = []
        for prompt, ids in zip(prompts, generate(self._model, prompts, self._tokenizer, self._limit), strict=True):
            outcome = self.task.parse(self._tokenizer.decode(ids))
            if isinstance(outcome, Rejected):
                raise ApiError(502, "no_answer", outcome.reason.value)
            parameters = dict(zip(self.task.keys, map(self.task.round, outcome.values), strict=True))
            replies.append(Reply(parameters, None, False, len(prompt), len(ids)))
        return replies

    async def answer(self, asks: list[Ask]) -> list[Reply]:
        """See `Backend.answer`."""
        return list(await asyncio.gather(*map(asyncio.wrap_future, self._batcher.submit(asks))))

    def is_alive(self) -> bool:
        """See `Backend.is_alive`."""
        return self._batcher.is_alive()

    async def close(self) -> None:
        """See `Backend.close`."""
        self._batcher.close()


def serve_generate(folder: Path) -> None:
    """The application around `generate`; runs until SIGTERM."""
    settings = Settings(port=0, answer_timeout_s=120)
    gate = build_app({"generate": GenerateBackend(folder)}, settings, Metrics())
    listener = listen(settings)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    make_server(gate, listener, settings, lambda: print(address, flush=True)).run([listener])


@contextmanager
def started(*command: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server process: its address once it has said it, and its handle. It is drained at the end."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        found = None
        while found is None:
            line = process.stdout.readline()
            assert line, "the server did not start"
            found = re.search(r"http://[\d.]+:\d+/", line)
        yield found[0], psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()


def ask(client: httpx2.Client, request: str) -> tuple[float, dict[str, float] | None]:
    """Milliseconds until the answer, and the answer; None where the server refused."""
    began = time.perf_counter()
    response = client.post("/api/interpreter", json={"request": request})
    taken = (time.perf_counter() - began) * 1000
    return taken, response.json()["parameters"] if response.status_code == 200 else None


class Load(NamedTuple):
    """What 32 clients saw, and what the server's memory did."""

    seconds: float
    latencies_ms: list[float]
    errors: list[str]
    answers: list[tuple[str, dict[str, float]]]
    memory_mb: list[float]


async def load_test(url: str, requests: Sequence[str], seconds: float, process: psutil.Process) -> Load:
    """Every client asks again as soon as it is answered; each has a connection of its own."""
    load = Load(seconds, [], [], [], [])

    async def client(number: int, http: httpx2.AsyncClient, end: float) -> None:
        at = number
        while time.perf_counter() < end:
            request = requests[at % len(requests)]
            at += CLIENTS + 1
            began = time.perf_counter()
            response = await http.post("/api/interpreter", json={"request": request})
            load.latencies_ms.append((time.perf_counter() - began) * 1000)
            if response.status_code == 200:
                load.answers.append((request, response.json()["parameters"]))
            else:
                load.errors.append(f"{response.status_code} {response.text[:200]}")

    async def watch(end: float) -> None:
        while time.perf_counter() < end:
            memory = process.memory_info()
            load.memory_mb.append((memory.rss - memory.shared) / 2**20)
            await asyncio.sleep(seconds / 120)

    limits = httpx2.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    async with httpx2.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        began = time.perf_counter()
        end = began + seconds
        await asyncio.gather(watch(end), *(client(number, http, end) for number in range(CLIENTS)))
    return load._replace(seconds=time.perf_counter() - began)


def prepare(kind: str, folder: Path) -> Path:
    """Teach the model the format and save it as an exported folder."""
    with tempfile.TemporaryDirectory() as base:
        model, tokenizer = load(kind, Path(base))
        teach_format(model, make_rows(TAUGHT_REQUESTS, tokenizer), *((120, 1e-3) if kind == "tiny" else (40, 1e-4)))
        model.save_pretrained(folder)
        tokenizer.save(folder)
    contract = Contract(name=kind, task=TASK, slots="answers", read_out="posterior_mean", max_tokens=512)
    write_contract(folder, contract)
    write_certificate(folder, [], [])
    return folder


def main() -> None:
    """Measure, print a table, and end with the headline figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half the requests, 20 s of load")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--model", default="tiny", choices=["tiny", "smollm2-135m"])
    parser.add_argument("--folder", type=Path, help="an exported model to serve, instead of teaching one")
    parser.add_argument("--seconds", type=float, help="of load; by default 60, with --quick 20")
    parser.add_argument("--generate", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.generate:
        serve_generate(asked.generate)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = asked.folder or prepare(asked.model, Path(place) / "taught")
        name = read_contract(folder).name
        # Beyond those that `prepare` teaches.
        requests = [row.request for row in make_requests(232 if asked.quick else 264)[TAUGHT_REQUESTS:]]
        ours = ("-m", "ppe_lora", "serve", str(folder), "--port", "0", "--answer-timeout", "120")
        with started(*ours) as (url, process), started(__file__, "--generate", str(folder)) as (plain, _):
            alone, samples, invalid = measure_alone(url, plain, requests)
            seconds = asked.seconds or (20.0 if asked.quick else 60.0)
            loaded = asyncio.run(load_test(url, requests, seconds, process))
    report(name, asked.out, alone, samples, invalid, loaded)


def measure_alone(url: str, plain: str, requests: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[float]], int]:
    """Answers of our server one at a time, both servers' latencies, in turn, and how many of `generate`'s were none."""
    invalid = 0
    samples: dict[str, list[float]] = {"ours": [], "generate": []}
    alone: dict[str, Any] = {}
    with httpx2.Client(base_url=url, timeout=120) as first, httpx2.Client(base_url=plain, timeout=120) as second:
        for client in (first, second):
            ask(client, requests[0])
        for number, request in enumerate(requests):
            taken, alone[request] = ask(first, request)
            samples["ours"].append(taken)
            if number < len(requests) // 2:  # it is the slower one
                taken, answer = ask(second, request)
                samples["generate"].append(taken)
                invalid += answer is None
    return alone, samples, invalid


def report(
    name: str, out: Path, alone: dict[str, Any], samples: dict[str, list[float]], invalid: int, loaded: Load
) -> None:
    """Print the table and the headline, and keep the samples."""
    furthest = [max(abs(answer[key] - alone[request][key]) for key in answer) for request, answer in loaded.answers]
    p50 = {name: statistics.median(values) for name, values in samples.items()}
    one_at_a_time = 1000 / statistics.fmean(samples["ours"])
    rate = len(loaded.answers) / loaded.seconds
    quarter = len(loaded.memory_mb) // 4
    early, late = (max(part) for part in (loaded.memory_mb[quarter : 2 * quarter], loaded.memory_mb[-quarter:]))
    headline = {
        "model": name,
        "device": device_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "ours_p50_ms": round(p50["ours"], 1),
        "generate_p50_ms": round(p50["generate"], 1),
        "generate_answers": len(samples["generate"]),
        "generate_invalid": invalid,
        "batch1_vs_generate": round(p50["generate"] / p50["ours"], 2),
        "load_seconds": round(loaded.seconds, 1),
        "load_requests": len(loaded.latencies_ms),
        "load_errors": len(loaded.errors),
        "load_wrong": sum(far > 1 for far in furthest),
        "load_off_by_one": sum(far == 1 for far in furthest),
        "load_requests_per_s": round(rate, 2),
        "one_at_a_time_per_s": round(one_at_a_time, 2),
        "throughput_vs_one_at_a_time": round(rate / one_at_a_time, 2),
        "load_p50_ms": round(statistics.median(loaded.latencies_ms), 1),
        "memory_mb_second_quarter": round(early, 1),
        "memory_mb_last_quarter": round(late, 1),
    }
    print("\n| figure | value |\n| --- | --- |")
    for figure, value in headline.items():
        print(f"| {figure} | {value} |")
    out.mkdir(parents=True, exist_ok=True)
    raw = {
        "headline": headline,
        "alone_ms": samples,
        "load_ms": loaded.latencies_ms,
        "memory_mb": loaded.memory_mb,
        "errors": loaded.errors[:20],
        "torch": torch.__version__,
    }
    (out / f"serving_{name}.json").write_text(json.dumps(raw) + "\n")
    print(json.dumps(headline))


if __name__ == "__main__":
    main()
