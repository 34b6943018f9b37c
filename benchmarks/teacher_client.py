"""Durable answers per second of the teacher client against a local HTTP stub, and how well it keeps a rate limit.

    python benchmarks/teacher_client.py [--quick] [--out DIR]

The stub speaks the chat completions protocol in a process of its own and answers at once; it has the last core, the
client the first. Every answer goes through the whole client: budget, rate limiter, HTTP, raw log with fsync. First
without a limit, by plain HTTP and by the endpoint that recipes use, with the official client, in turns; then with more
work than a limit per minute allows, for more than a minute: the stub counts how much of the limit is used, and how
much arrives in the fullest 60 seconds. Answers per second are by the clock, and a machine that has other work to do
gives the client only part of its core: the processor time of an answer says what it could do, and the share of time
in which the client was ready and had no core says how busy the machine was. Raw samples go to
DIR/teacher_client.json, and the last printed line is one JSON object of headline figures.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx2

from ppe_lora import network
from ppe_lora.corpus.teachers.llm.asking import Settings
from ppe_lora.corpus.teachers.llm.client import Client
from ppe_lora.corpus.teachers.llm.exchange import Endpoint, Question, RateLimit, Reply, Unavailable
from ppe_lora.corpus.teachers.llm.openai_compatible import OpenAICompatibleEndpoint
from ppe_lora.corpus.teachers.llm.raw_log import RawLog, read_replies
from ppe_lora.corpus.teachers.llm.servers import Server

PROMPT = "Write what a person would say who wants this kind of music: quiet, warm, a little nostalgic. " * 12
ANSWER = "雨の夜に一人で聴きたい、静かであたたかくて少し懐かしい曲をお願いします。"
LIMIT_PER_MINUTE = 6000
WINDOW_S = 60.0
CORES = sorted(os.sched_getaffinity(0))


class HttpEndpoint:
    """Plain HTTP: what the teacher client itself can do."""

    name = "HTTP"

    def __init__(self, url: str) -> None:
        self._url, self._http = f"{url}/chat/completions", network.client(url, 60.0, many=True)

    async def check(self, model: str) -> None:
        """The stub serves every model."""

    async def ask(self, question: Question) -> Reply:
        """One attempt."""
        body = {"model": question.model, "messages": question.messages, **question.sampling}
        try:
            response = await self._http.post(self._url, json=body)
        except httpx2.HTTPError as error:
            raise Unavailable(f"stub: {error}") from error
        got = response.json()
        choice, usage = got["choices"][0], got["usage"]
        text, tokens = choice["message"]["content"], (usage["prompt_tokens"], usage["completion_tokens"])
        return Reply(question.key, text, choice["finish_reason"], *tokens)

    async def close(self) -> None:
        """Give connections back."""
        await self._http.aclose()


PEERS: dict[str, Callable[[str], Endpoint]] = {"HTTP": HttpEndpoint, "openai client": OpenAICompatibleEndpoint}


class Stub(asyncio.Protocol):
    """Answers every request on a connection at once, with one and the same body.

    Not a server of a library: it shares a small machine with what is measured, so it does as little as possible.
    """

    def __init__(self, times: list[float]) -> None:
        self._times, self._received = times, b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep where answers go."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole; note when it came."""
        assert self._transport is not None
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._received, 0, end + 2)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._received) < whole:
                return
            asks = self._received.startswith(b"POST")
            self._received = self._received[whole:]
            if asks:
                self._times.append(time.monotonic())
            self._transport.write(_ANSWER if asks else _MODELS)


def _response(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content) + content


_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_ANSWER = _response(
    {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 400, "completion_tokens": 30, "total_tokens": 430},
    }
)
_MODELS = _response({"object": "list", "data": [{"id": "m", "object": "model"}]})


def serve(sock: socket.socket, core: int, arrivals: Connection) -> None:
    """The stub's process: answers on its core, and sends the times of arrival when it is told to stop."""
    os.sched_setaffinity(0, {core})
    times: list[float] = []

    async def until_told() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Stub(times), sock=sock)
        async with server:
            await asyncio.to_thread(arrivals.recv)
            arrivals.send(times)

    asyncio.run(until_told())


def ask(count: int, folder: Path, limit: RateLimit, endpoint: Callable[[str], Endpoint]) -> tuple[float, list[float]]:
    """Ask `count` questions of a fresh stub: the seconds it took, and when requests arrived."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        here, there = multiprocessing.Pipe()
        stub = multiprocessing.get_context("fork").Process(target=serve, args=(sock, CORES[-1], there))
        stub.start()
        questions = [
            Question("m", ({"role": "user", "content": f"{PROMPT}{number}"},), {"max_tokens": 100, "temperature": 1.0})
            for number in range(count)
        ]
        server = Server(endpoint(f"http://127.0.0.1:{sock.getsockname()[1]}/v1"), limit=limit)
        with RawLog(folder) as log, Client([server], log, settings=Settings(concurrency=64)) as client:
            started = time.monotonic()
            client.ask_all(questions)
            seconds = time.monotonic() - started
        here.send("stop")
        arrivals = here.recv()
        stub.join()
    if len(read_replies(folder)) != count:
        raise SystemExit(f"expected {count} replies on disk; got {len(read_replies(folder))}")
    return seconds, arrivals


def waited_s() -> float:
    """Seconds that this process's first thread, which runs the client, was ready and had no core."""
    return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9


def fullest_window(arrivals: list[float]) -> int:
    """Most arrivals in any 60 seconds."""
    times, most, first = sorted(arrivals), 0, 0
    for last, at in enumerate(times):
        while at - times[first] >= WINDOW_S:
            first += 1
        most = max(most, last - first + 1)
    return most


def main() -> None:
    """Measure, and end with the headline figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seven rounds of 2,000 answers, and 75 seconds at a limit")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    os.sched_setaffinity(0, {CORES[0]})
    rounds, count, limited_s = (7, 2000, 75) if asked.quick else (7, 20_000, 180)
    # On the disk that holds data, since /tmp may be memory, where fsync is free.
    asked.out.mkdir(parents=True, exist_ok=True)
    rates: dict[str, list[float]] = {name: [] for name in PEERS}
    cpu_ms: dict[str, list[float]] = {name: [] for name in PEERS}
    without_core: dict[str, list[float]] = {name: [] for name in PEERS}
    for _ in range(rounds):
        for name, peer in PEERS.items():
            used, waited = time.process_time(), waited_s()
            with tempfile.TemporaryDirectory(dir=asked.out) as folder:
                seconds, _ = ask(count, Path(folder), RateLimit(), peer)
            rates[name].append(count / seconds)
            cpu_ms[name].append(1000 * (time.process_time() - used) / count)
            without_core[name].append((waited_s() - waited) / seconds)
            print(f"{name}: {count / seconds:.0f} durable answers/s, {cpu_ms[name][-1]:.2f} ms of processor each")
    with tempfile.TemporaryDirectory(dir=asked.out) as folder:
        limited = LIMIT_PER_MINUTE * limited_s // 60
        _, arrivals = ask(limited, Path(folder), RateLimit(requests_per_minute=LIMIT_PER_MINUTE), HttpEndpoint)
    used = (len(arrivals) - 1) / (max(arrivals) - min(arrivals)) * WINDOW_S / LIMIT_PER_MINUTE
    headline: dict[str, Any] = {
        "durable_answers_per_s": {name: round(statistics.median(found), 1) for name, found in rates.items()},
        "durable_answers_per_s_best": {name: round(max(found), 1) for name, found in rates.items()},
        "cpu_ms_per_answer": {name: round(statistics.median(found), 2) for name, found in cpu_ms.items()},
        "share_of_time_without_core": {name: round(statistics.median(one), 2) for name, one in without_core.items()},
        "rate_limit_used": round(used, 4),
        "rate_limit_fullest_minute": round(fullest_window(arrivals) / LIMIT_PER_MINUTE, 4),
        "load": [round(one, 1) for one in os.getloadavg()],
        "cores": len(CORES),
    }
    raw = {
        "headline": headline,
        "answers_per_s": rates,
        "cpu_ms": cpu_ms,
        "share_of_time_without_core": without_core,
        "arrivals_s": [round(at - arrivals[0], 4) for at in arrivals],
    }
    (asked.out / "teacher_client.json").write_text(json.dumps(raw) + "\n")
    print(json.dumps(headline))


if __name__ == "__main__":
    main()
