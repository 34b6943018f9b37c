"""Clients that keep the server waiting, break the protocol or hang up: others are served, and the log stays short."""

import asyncio
import contextlib
import http.client
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import httpx2
import pytest

from ppe_lora.errors import ServeError
from ppe_lora.serving.backend import Ask, Reply
from ppe_lora.serving.connections import most_connections
from ppe_lora.serving.server import listen
from ppe_lora.serving.settings import Settings
from tests.serving import Running, Scripted, serving

BODY = json.dumps({"request": "something soft"}).encode()
HEAD = b"POST /api/interpreter HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
HALVES = [b"", b"POST /api/int", HEAD, HEAD + b"Content-Length: 400\r\n\r\n{"]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever clients do writes no more than a line of warning, and no traceback."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert len(caplog.records) <= 1


def connect(running: Running, sent: bytes = b"", read_buffer: int | None = None) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    client = socket.socket()
    if read_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, read_buffer)
    client.settimeout(10)
    client.connect((host, int(port)))
    client.sendall(sent)
    return client


def answer_to(running: Running, *parts: bytes) -> bytes:
    """Everything that comes back until the server closes."""
    with connect(running, parts[0]) as client:
        for part in parts[1:]:
            time.sleep(0.1)
            client.sendall(part)
        return client.makefile("rb").read()


def wait_for(happened: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


CROWD = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (1000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
halves, clients = eval(sys.argv[2]), []
for number in range(400):
    clients.append(socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=10))
    try:
        clients[-1].sendall(halves[number % len(halves)])
    except OSError:
        pass  # it may have made room already
print("there", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """256 for this process, as `ulimit -n 256` gives."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_four_hundred_half_requests_where_there_are_256_descriptors(
    few_descriptors: None, caplog: pytest.LogCaptureFixture
) -> None:
    """`/health` was out of reach, and the log had 305,725 lines."""
    with serving({"m": Scripted()}) as running:
        command = [sys.executable, "-c", CROWD, running.url.rpartition(":")[2], repr(HALVES)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as crowd:
            assert crowd.stdout is not None
            assert crowd.stdout.readline() == "there\n"
            for _ in range(20):
                assert httpx2.get(f"{running.url}/health", timeout=5).json() == {"status": "ok"}
            answer = httpx2.post(f"{running.url}/api/interpreter", json=json.loads(BODY), timeout=5)
            assert answer.json()["parameters"] == {"a": 10, "b": 20}
            crowd.communicate("")
    assert [record.getMessage() for record in caplog.records] == [
        "128 connections are open, as many as may be; those that wait for their clients make room for new ones"
    ]


def test_half_of_the_descriptors_are_for_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other half is for files, engines and the log."""
    resource = pytest.importorskip("resource")
    for limit, expected in ((256, 128), (20_000, 1024), (resource.RLIM_INFINITY, 1024), (1, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert most_connections(Settings()) == expected


def test_the_longest_waiting_client_makes_room_and_never_one_that_is_being_answered() -> None:
    backend = Scripted(seconds=1.0)
    with serving({"m": backend}, max_connections=8) as running:
        busy = connect(running, WHOLE)
        wait_for(lambda: bool(backend.asked))
        idle = [connect(running) for _ in range(7)]
        for _ in range(3):
            assert b"200 OK" in answer_to(running, b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert idle[0].recv(1) == b""
        idle[-1].settimeout(0.05)
        with pytest.raises(TimeoutError):
            idle[-1].recv(1)
        assert busy.recv(12) == b"HTTP/1.1 200"
        for client in (busy, *idle):
            client.close()


def test_where_everybody_is_being_answered_the_next_one_is_turned_away_at_once() -> None:
    """Left in the queue of the system, it would wake the event loop without end."""
    backend = Scripted(seconds=2.0)
    with serving({"m": backend}, max_connections=2) as running:
        busy = []
        for count in (1, 2):
            busy.append(connect(running, WHOLE))
            wait_for(lambda count=count: len(backend.asked) == count)
        with connect(running) as late, contextlib.suppress(ConnectionResetError):
            assert late.recv(1) == b""
        assert running.gate.running == 2
        assert [client.recv(12) for client in busy] == [b"HTTP/1.1 200"] * 2
        for client in busy:
            client.close()


def test_who_does_not_read_the_answer_is_let_go() -> None:
    """A slow reader held its connection, its task and its answers for ever."""
    with serving({"m": Scripted()}, write_timeout_s=0.5) as running:
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        slow = connect(running, read_buffer=4096)
        slow.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(2000):
                slow.send(ask)
        wait_for(lambda: running.gate.running == 1)
        wait_for(lambda: running.gate.running == 0 and not running.server.server_state.connections)
        slow.close()


class Watched(Scripted):
    """Knows whether its work was given up."""

    given_up = False

    async def answer(self, asks: list[Ask]) -> list[Reply]:
        try:
            return await super().answer(asks)
        except asyncio.CancelledError:
            self.given_up = True
            raise


def test_what_nobody_waits_for_is_not_computed() -> None:
    """A client that hung up while it was in the queue kept its place there."""
    backend = Watched(seconds=30.0)
    with serving({"m": backend}) as running:
        with connect(running, WHOLE):
            wait_for(lambda: bool(backend.asked))
        wait_for(lambda: backend.given_up and running.gate.running == 0)


BROKEN = {
    "no HTTP": ([b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n"], b"HTTP/1.1 400"),
    "headers without end": ([b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000], b"HTTP/1.1 400"),
    "two lengths": ([HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\na"], b"HTTP/1.1 400"),
    "a broken chunk": ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n"], b"HTTP/1.1 400"),
    "a broken chunk with a refusal": (
        [HEAD + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
        b"HTTP/1.1 400",
    ),
    "a broken chunk behind a refusal": (
        [HEAD + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"zz\r\n"],
        b"HTTP/1.1 415",
    ),
    "no host": ([b"GET / HTTP/1.1\r\n\r\n"], b"HTTP/1.1 400"),
    "another site as host": ([b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"], b"HTTP/1.1 400"),
    "an absolute target": ([b"GET http://evil/ HTTP/1.0\r\nHost: localhost\r\n\r\n"], b"HTTP/1.1 404"),
    "a line end in the path": ([b"GET /a%0d%0ab%00 HTTP/1.0\r\nHost: localhost\r\n\r\n"], b"HTTP/1.1 404"),
    "asterisk": ([b"OPTIONS * HTTP/1.0\r\nHost: localhost\r\n\r\n"], b"HTTP/1.1 404"),
    "a web socket": (
        [
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ],
        b"HTTP/1.1 200",
    ),
    "too large, and it waits": (
        [HEAD + b"Expect: 100-continue\r\nContent-Length: 900000\r\n\r\n"],
        b"HTTP/1.1 413",
    ),
    "it waits": (
        [HEAD + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY), BODY],
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_and_odd_requests_get_an_answer(case: str) -> None:
    parts, status = BROKEN[case]
    with serving({"m": Scripted()}, read_timeout_s=1.0) as running:
        answer = answer_to(running, *parts)
        with running.client() as client:
            assert client.get("/health").status_code == 200
    assert answer.replace(b" \r\n", b"\r\n").startswith(status)
    if b" 40" in status:
        assert set(json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]) == {"message", "type"}


def test_requests_on_one_connection_are_answered_in_their_order() -> None:
    with serving({"m": Scripted()}) as running:
        last = b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        answer = answer_to(running, WHOLE + WHOLE + last)
    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.endswith(b'{"status":"ready"}')


def test_head_is_get_without_a_body_and_other_methods_are_named() -> None:
    """Load balancers ask HEAD /health and took 405 for a dead server."""
    with serving({"m": Scripted()}) as running, running.client() as client:
        head = client.head("/health")
        assert (head.status_code, head.content) == (200, b"")
        refused = client.options("/health", headers={"Origin": "http://evil", "Access-Control-Request-Method": "GET"})
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET")
        assert not [name for name in refused.headers if name.startswith("access-control")]


def test_a_compressed_body_is_refused_unread() -> None:
    with serving({"m": Scripted()}) as running, running.client() as client:
        response = client.post("/api/interpreter", content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert (response.status_code, response.json()["error"]["message"]) == (
        415,
        "content-encoding: expected none; got 'gzip'",
    )


@pytest.mark.parametrize("host", ["localhost:9", "LOCALHOST", "127.0.0.1:80", "[::1]:80", "10.0.0.1", "127.0.0.2"])
def test_addresses_and_localhost_are_names_of_this_machine(host: str) -> None:
    """A page elsewhere can have its own name resolve to this machine, but cannot be called by an address."""
    with serving({"m": Scripted()}) as running, running.client() as client:
        assert client.get("/api/models", headers={"Host": host}).status_code == 200


def test_behind_a_key_any_name_will_do() -> None:
    """A proxy in front passes on the name that the world knows; a foreign page has no key."""
    with serving({"m": Scripted()}, api_key="right") as running, running.client() as client:
        headers = {"Host": "api.example.com", "Authorization": "Bearer right"}
        assert client.get("/api/models", headers=headers).status_code == 200


def keyed(client: httpx2.Client, key: str, forwarded: str | None = None) -> int:
    headers = {"Authorization": f"Bearer {key}"} | ({"X-Forwarded-For": forwarded} if forwarded else {})
    return client.get("/api/models", headers=headers).status_code


def test_wrong_keys_are_limited_whatever_a_client_calls_itself() -> None:
    """300 wrong keys got 401 300 times; with a new X-Forwarded-For each there was no limit at all."""
    with serving({"m": Scripted()}, api_key="right") as running, running.client() as client:
        codes = [keyed(client, f"wrong {number}", f"10.0.0.{number}") for number in range(30)]
        assert codes == [401] * 20 + [429] * 10
        late = client.get("/api/models", headers={"Authorization": "Bearer right"})
        assert (late.status_code, late.headers["retry-after"]) == (429, "60")
        assert late.json()["error"]["message"] == "expected at most 20 wrong API keys a minute"
        assert client.get("/health").status_code == 200


def test_who_has_shown_the_right_key_is_not_shut_out_by_others_at_its_address() -> None:
    with serving({"m": Scripted()}, api_key="right") as running, running.client() as client:
        assert keyed(client, "right") == 200
        assert [keyed(client, "wrong") for _ in range(22)] == [401] * 20 + [429] * 2
        assert keyed(client, "right") == 200


def test_a_request_without_any_key_is_no_guess() -> None:
    with serving({"m": Scripted()}, api_key="right") as running, running.client() as client:
        assert {client.get("/api/models").status_code for _ in range(25)} == {401}
        assert keyed(client, "right") == 200


def test_a_named_proxy_says_who_the_client_is() -> None:
    with (
        serving({"m": Scripted()}, api_key="right", trusted_proxies=("127.0.0.1",)) as running,
        running.client() as client,
    ):
        assert [keyed(client, "wrong", "10.0.0.1") for _ in range(21)] == [401] * 20 + [429]
        assert keyed(client, "wrong", "10.0.0.2") == 401
        # one client has 2^64 addresses of IPv6
        assert [keyed(client, "wrong", f"2001:db8::{n}") for n in range(21)] == [401] * 20 + [429]


def test_the_end_does_not_wait_for_clients_that_do_not_read() -> None:
    """After the drain uvicorn waited as long again for their connections to close."""
    with serving({"m": Scripted()}, drain_s=0.2) as running:
        slow = connect(running, read_buffer=4096)
        slow.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(2000):
                slow.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: running.gate.running == 1)
    slow.close()
    with serving({"m": Scripted()}, drain_s=30.0) as running:
        assert running.server.config.timeout_graceful_shutdown == 2


def test_what_is_not_answered_at_the_end_of_the_drain_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    """Each request that was still running ended in a traceback and half an answer."""
    backend = Scripted(seconds=60.0)
    with serving({"m": backend}, drain_s=0.2) as running:
        client = connect(running, WHOLE)
        wait_for(lambda: bool(backend.asked))
    answer = client.makefile("rb").read()
    client.close()
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"the server is shutting down; try again" in answer
    caplog.clear()  # uvicorn's own line: how many it cancelled


def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    listener = listen(Settings(host="::1", port=0))
    listener.close()


@pytest.mark.parametrize("host", ["a..b", "nowhere.invalid", "203.0.113.1", "x" * 300])
def test_an_address_that_is_none_of_this_machine_says_so(host: str) -> None:
    """A name with two dots in a row was a UnicodeError."""
    with pytest.raises(ServeError, match=r"expected a free address of this machine; got: .+; name another with --port"):
        listen(Settings(host=host, port=0))


def test_health_beside_forty_long_chats() -> None:
    """Forty bodies in parts of 3,900 characters blocked the event loop for 2.5 s; now they are refused unread."""
    parts = [{"type": "text", "text": "word " * 780}] * 60
    chat = {"model": "m", "messages": [{"role": "user", "content": parts}]}
    with serving({"m": Scripted()}) as running:
        host, port = running.url.removeprefix("http://").split(":")
        statuses: list[int] = []

        def talk() -> None:
            client = http.client.HTTPConnection(host, int(port), timeout=30)
            client.request("POST", "/v1/chat/completions", json.dumps(chat), {"Content-Type": "application/json"})
            answer = client.getresponse()
            statuses.append(answer.status)
            assert b"messages: expected at most 4000 characters of the user; got 234,000" in answer.read()
            client.close()

        talkers = [threading.Thread(target=talk) for _ in range(40)]
        for talker in talkers:
            talker.start()
        for talker in talkers:
            talker.join()
    assert statuses == [422] * 40
