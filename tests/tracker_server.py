"""One loopback server for the hosted APIs of W&B and Weave, as the real clients speak to them; and three broken ones.

What it holds is what the clients sent: runs with their history, artifacts and their lineage, and traces. It refuses
what the real servers would refuse: a step that is not above the last one, a reference to an object it does not have.
"""

import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from weave.trace.serialization.digest import compute_object_digest, compute_row_digest, compute_table_digest

INTERNAL_PROJECT = "UHJvamVjdDox"


@dataclass
class Received:
    """Everything the clients sent."""

    requests: list[str] = field(default_factory=list)
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, list[Any]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    calls: dict[str, dict[str, Any]] = field(default_factory=dict)
    repeated_calls: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    fail_after_batches: int | None = None
    batches: int = 0


class TraceApi:
    """The routes of Weave's trace server."""

    def __init__(self, received: Received) -> None:
        self.received = received

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        received = self.received
        if path == "/obj/create":
            stored = _with_internal_ids(body["obj"]["val"])
            self._check_references(body["obj"]["val"])
            digest = compute_object_digest(stored)
            received.objects[digest] = body["obj"]
            return 200, {"digest": digest}
        if path == "/table/create":
            rows = body["table"]["rows"]
            digests = [compute_row_digest(row) for row in rows]
            digest = compute_table_digest(digests)
            received.tables[digest] = rows
            return 200, {"digest": digest, "row_digests": digests}
        if path == "/file/create":
            digest = hashlib.sha256(repr(body).encode()).hexdigest()
            received.files.add(digest)
            return 200, {"digest": digest}
        if path.endswith("/calls/complete"):
            if received.fail_after_batches is not None and received.batches >= received.fail_after_batches:
                return 500, {"detail": "told to fail"}
            received.batches += 1
            for call in body["batch"]:
                self._check_references([call["op_name"], call["inputs"], call["output"]])
                if call["id"] in received.calls:
                    received.repeated_calls.append(call["id"])
                received.calls[call["id"]] = call
            return 200, {}
        return 404, {"detail": f"no such route: {path}"}

    def _check_references(self, value: Any) -> None:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for one in value:
                self._check_references(one)
        elif isinstance(value, str) and value.startswith("weave:///"):
            digest = value.split("/")[-1].split(":")[-1]
            if digest not in self.received.objects and digest not in self.received.tables:
                self.received.dangling.append(value)


def _with_internal_ids(value: Any) -> Any:
    """As the real server stores references: with the project's internal id, so digests differ from offline ones."""
    if isinstance(value, dict):
        return {name: _with_internal_ids(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_with_internal_ids(one) for one in value]
    if isinstance(value, str) and value.startswith("weave:///"):
        _, _, _, _, _, rest = value.split("/", 5)
        return f"weave-trace-internal:///{INTERNAL_PROJECT}/{rest}"
    return value


@contextlib.contextmanager
def trace_server() -> Iterator[tuple[str, Received]]:
    """A Weave server on a free port, with the one query of W&B that Weave asks: whether its project exists."""
    received = Received()
    api = TraceApi(received)

    def answer(path: str, body: bytes, headers: Any) -> tuple[int, Any]:
        received.requests.append(path)
        if path == "/graphql":
            name = json.loads(body)["variables"].get("name", "ppe")
            return 200, {"data": {"project": {"name": name}}}
        is_json = "json" in headers.get("Content-Type", "")
        return api.answer(path, json.loads(body) if is_json else body)

    with serve(answer) as url:
        yield url, received


@contextlib.contextmanager
def serve(answer: Any) -> Iterator[str]:
    """An HTTP server on a free port whose every request is answered by `answer(path, body, headers)`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content = answer(self.path, body, self.headers)
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        do_GET = do_PUT = do_POST

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that hangs up is no error of the test."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def broken_server(how: str) -> Iterator[str]:
    """An address that refuses connections, accepts them and never answers, or answers 500 to everything."""
    if how == "500":
        with serve(lambda path, body, headers: (500, {"error": "broken"})) as url:
            yield url
        return
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        if how == "hangs":
            listening.listen(50)
        yield url
