"""The server at its edges: crowds, half requests, slow readers, hostile bodies, guessed keys. Real sockets, one server
process a case, of the whole application around a model that answers at once."""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
from case import TRACEBACK, Case

LIMIT_MS = 100.0
HEAD = b"POST /api/interpreter HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HALVES = (b"", b"POST /api/int", HEAD, HEAD + b"Content-Length: 400\r\n\r\n{")

SERVER = """
import sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
except ImportError:
    pass
from ppe_lora.serving.backend import Reply
from ppe_lora.serving.metrics import Metrics
from ppe_lora.serving.server import build_app, listen, make_server
from ppe_lora.serving.settings import Settings
from ppe_lora.tasks.scores import ScoresTask

class Constant:
    task, kind, waiting = ScoresTask(keys=("a", "b")), "constant", 0
    async def answer(self, asks):
        return [Reply({"a": 1, "b": 2}, None, False, 7, 5) for _ in asks]
    def is_alive(self):
        return True
    async def close(self):
        pass

settings = Settings(port=0, **eval(sys.argv[2]))
gate = build_app({"m": Constant()}, settings, Metrics(), sys.argv[3] or None)
listener = listen(settings)
port = listener.getsockname()[1]
make_server(gate, listener, settings, lambda: print(port, flush=True)).run([listener])
"""


class Server(NamedTuple):
    """A server process."""

    port: int
    process: psutil.Process
    log: Path

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, float]:
        """Status and milliseconds of a GET on a connection of its own."""
        began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=dict(headers or {}))
            response = connection.getresponse()
            response.read()
        return response.status, (time.perf_counter() - began) * 1000

    def post(self, path: str, body: bytes) -> int:
        """Status of a POST of JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
        return response.status

    def connect(self, sent: bytes = b"") -> socket.socket:
        """A connection on which something has been sent."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # else the system reads megabytes for a client
        client.settimeout(10)
        client.connect(("127.0.0.1", self.port))
        with contextlib.suppress(OSError):  # it may have made room for others already
            client.sendall(sent)
        return client

    def await_connections(self, there: Callable[[int], bool], seconds: float = 20.0) -> int:
        """How many clients are connected, as soon as it is as wanted, or after a while."""
        end = time.monotonic() + seconds
        while not there(count := len(self.process.net_connections()) - 1) and time.monotonic() < end:
            time.sleep(0.05)
        return count

    def log_lines(self) -> list[str]:
        """What the server wrote."""
        return self.log.read_text().splitlines()


@contextmanager
def server(scratch: Path, descriptors: int = 20_000, key: str = "", **settings: object) -> Iterator[Server]:
    """Start a server process, and end it."""
    log = scratch / f"log-{time.monotonic_ns()}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SERVER, str(descriptors), repr(settings), key]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        try:
            assert process.stdout is not None
            yield Server(int(process.stdout.readline()), psutil.Process(process.pid), log)
        finally:
            process.terminate()
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def cases(quick: bool, scratch: Path) -> list[Case]:
    """All cases; `quick` measures `/health` 50 instead of 200 times."""
    times = 50 if quick else 200
    found = [
        crowd(scratch, f"1,000 {what} connections, {limit:,} descriptors", 1000, parts, limit, times)
        for what, parts in (("idle", (b"",)), ("half-sent", HALVES))
        for limit in (20_000, 1024)
    ]
    found.append(crowd(scratch, "400 half requests, 256 descriptors", 400, HALVES, 256, times))
    return [
        *found,
        slow_readers(scratch),
        *busy_loop(scratch),
        oddities(scratch),
        *wrong_keys(scratch),
        stuck_end(scratch),
    ]


def crowd(scratch: Path, name: str, count: int, parts: tuple[bytes, ...], limit: int, times: int) -> Case:
    """`/health` beside many connections that wait, and before they came: a busy machine is slow by itself."""
    with server(scratch, limit) as running, contextlib.ExitStack() as crowd:
        quiet = max(running.get("/health")[1] for _ in range(times))
        for number in range(count):
            crowd.enter_context(running.connect(parts[number % len(parts)]))
        _, first = running.get("/health")  # behind a thousand connections that are still being accepted
        asked = [running.get("/health") for _ in range(times)]
        worst = max(taken for _, taken in asked)
        processor_s = -running.process.cpu_times().user
        time.sleep(1.0)
        processor_s += running.process.cpu_times().user
        lines = len(running.log_lines())
    in_time = worst < max(LIMIT_MS, 2 * quiet)
    passed = {status for status, _ in asked} == {200} and in_time and lines < 10 and processor_s < 0.5
    return Case(
        name,
        f"/health under {LIMIT_MS:g} ms (or twice its time alone), fewer than 10 log lines, an idle processor",
        f"/health first {first:.0f} ms, then at most {worst:.0f} ms, alone {quiet:.0f} ms; {lines} log lines; "
        f"{processor_s:.2f} s of processor time in a second",
        passed,
    )


def slow_readers(scratch: Path) -> Case:
    """Clients that ask and ask and never read."""
    asked = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000
    with server(scratch, write_timeout_s=2.0) as running, contextlib.ExitStack() as crowd:
        for _ in range(50):
            client = crowd.enter_context(running.connect())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.send(asked)
        came = running.await_connections(lambda count: count == 50)
        left = running.await_connections(lambda count: count == 0)
        status, taken = running.get("/health")
    observed = f"{came} came, {left} are left after the time-out; /health {status} in {taken:.0f} ms"
    return Case("50 clients that do not read", "all let go", observed, (came, left, status) == (50, 0, 200))


def long_chat(parts: int) -> bytes:
    """A chat whose message has many parts of 3,900 characters."""
    content = [{"type": "text", "text": "word " * 780}] * parts
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": content}]}).encode()


def wide(**body: object) -> bytes:
    """A body with 18,000 values."""
    return json.dumps({"request": "a", **body}).encode()


BODIES: dict[str, tuple[str, bytes]] = {
    "chats in parts of 3,900 characters": ("/v1/chat/completions", long_chat(60)),
    "bodies of 18,000 unknown keys": ("/api/interpreter", wide(**{f"k{n}": 1 for n in range(18_000)})),
    "contexts of 18,000 numbers": ("/api/interpreter", wide(context={f"k{n}": 1 for n in range(18_000)})),
    "batches of 60,000 objects": ("/api/interpreter/batch", json.dumps({"requests": [{}] * 60_000}).encode()),
    "batches of 64 long requests": (
        "/api/interpreter/batch",
        json.dumps({"requests": [{"request": "word " * 780}] * 64}).encode(),
    ),
    "bodies nested 100,000 deep": ("/api/interpreter", b"[" * 100_000),
}


def busy_loop(scratch: Path) -> list[Case]:
    """The longest `/health` beside forty hostile bodies at once: a blocked event loop answers nobody."""
    found = []
    with server(scratch) as running:
        for name, (path, body) in BODIES.items():
            statuses: Counter[int] = Counter()
            senders = [
                threading.Thread(target=lambda p=path, b=body, s=statuses: s.update([running.post(p, b)]))
                for _ in range(40)
            ]
            taken = []
            for sender in senders:
                sender.start()
            while any(sender.is_alive() for sender in senders) or not taken:
                taken.append(running.get("/health")[1])
            observed = f"/health at most {max(taken):.0f} ms of {len(taken)} times, statuses {dict(statuses)}"
            right = statuses.total() == 40 and not any(status >= 500 for status in statuses)
            passed = right and max(taken) < 5 * LIMIT_MS
            found.append(Case(f"40 {name}", f"no 500, /health under {5 * LIMIT_MS:g} ms", observed, passed))
        lines = running.log_lines()
    observed = f"{len(lines)} lines"
    found.append(Case("the log of all these bodies", "empty", observed, not lines))
    return found


ODD = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
    HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\na",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    HEAD + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    HEAD + b"Expect: 100-continue\r\nContent-Length: 900000\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n",
    b"GET /a%0d%0ab%00 HTTP/1.0\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: evil.example\r\n\r\n",
    b"HEAD /health HTTP/1.0\r\nHost: localhost\r\n\r\n",
)


def oddities(scratch: Path) -> Case:
    """What is no request, or an odd one: an answer to each, and no line of the log."""
    with server(scratch) as running:
        answers = []
        for odd in ODD:
            with running.connect(odd) as client:
                try:
                    answers.append(client.makefile("rb").read(12)[9:].decode())
                except OSError as error:
                    answers.append(type(error).__name__)
        lines = running.log_lines()
    passed = all(re.fullmatch("[24]..", answer) for answer in answers) and not lines
    observed = f"{', '.join(answers)}; {len(lines)} lines"
    return Case(f"{len(ODD)} broken or odd requests", "200 or 4xx, an empty log", observed, passed)


def wrong_keys(scratch: Path) -> list[Case]:
    """300 guesses from one address, with and without another X-Forwarded-For each."""

    def guesses(running: Server, forwarded: Callable[[int], Mapping[str, str]]) -> Counter[int]:
        return Counter(
            running.get("/api/models", {"Authorization": f"Bearer {n}", **forwarded(n)})[0] for n in range(300)
        )

    found = []
    for name, forwarded in (
        ("300 wrong keys", lambda n: {}),
        ("300 wrong keys, each with another X-Forwarded-For", lambda n: {"X-Forwarded-For": f"10.0.{n // 250}.{n}"}),
    ):
        with server(scratch, key="the right key") as running:
            known = running.get("/api/models", {"Authorization": "Bearer the right key"})[0]
            counts = guesses(running, forwarded)
            after = running.get("/api/models", {"Authorization": "Bearer the right key"})[0]
            health = running.get("/health")[0]
        observed = f"{dict(counts)}; the right key {known} before and {after} after; /health {health}"
        passed = counts[401] <= 60 and counts[401] + counts[429] == 300 and (known, after, health) == (200,) * 3
        found.append(Case(name, "429 after 20 a minute; who had the right key is still served", observed, passed))
    return found


def stuck_end(scratch: Path) -> Case:
    """SIGTERM beside clients that have sent half a request, or do not read."""
    with contextlib.ExitStack() as crowd, server(scratch, drain_s=1.0, read_timeout_s=60.0) as running:
        for number in range(100):
            crowd.enter_context(running.connect(HALVES[number % len(HALVES)]))
        began = time.monotonic()
        running.process.terminate()
        running.process.wait(timeout=40)
        taken, log = time.monotonic() - began, running.log.read_text()
    passed = taken < 6 and TRACEBACK not in log
    observed = f"ended after {taken:.1f} s, {log.count(TRACEBACK)} tracebacks"
    return Case("SIGTERM with 100 stuck connections, --drain 1", "ends within 6 s, no traceback", observed, passed)
