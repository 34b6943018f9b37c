"""Loopback servers that speak the protocols of hosted teachers, and fail on demand.

    with serve(MistralServer(faults=script(Status(429, {"retry-after": "2"})))) as url: ...

Only the network is short: the requests come from the real client libraries, over real sockets.
"""

import asyncio
import email
import email.policy
import hashlib
import itertools
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEY = "a-key-for-loopback"
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Status:
    """Answer with this status instead of the real answer; the request is not carried out."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None


@dataclass(frozen=True)
class Delay:
    """Answer, but only after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Reset:
    """Reset the TCP connection: before anything is done or, with `late`, once the request has been carried out."""

    late: bool = False


@dataclass(frozen=True)
class Truncated:
    """Send only the start of the answer: as a whole response, or (`promised`) of the length of the whole answer."""

    promised: bool = False


Fault = Status | Delay | Reset | Truncated
FaultPlan = Callable[[str, int], Fault | None]
"""Takes the path and which request of that path this is, from 0."""


def no_faults(path: str, number: int) -> None:
    return None


def script(*faults: Fault | None, path: str = CHAT) -> FaultPlan:
    """The first requests of a path meet these faults in order, later ones none."""
    return lambda at, number: faults[number] if at == path and number < len(faults) else None


def always(fault: Fault, path: str = CHAT) -> FaultPlan:
    return lambda at, number: fault if at == path else None


@contextmanager
def serve(server: "ChatServer", port: int = 0) -> Iterator[str]:
    """Run a server in a thread; gives its address without `/v1`. Port 0 takes a free one."""
    config = uvicorn.Config(server.app, host="127.0.0.1", port=port, log_level="critical", http="h11", lifespan="off")
    runner = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", port), backlog=2048)
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        runner.force_exit = runner.should_exit = True
        thread.join(10)


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def echo(body: Mapping[str, Any]) -> str:
    """The default answer: the last message said back, as JSON where a schema is asked for."""
    said = str(body["messages"][-1]["content"])
    return json.dumps({"text": said}, ensure_ascii=False) if "response_format" in body else said


class ChatServer:
    """What both protocols share: chat completions, the list of models, keys, faults, and a record of all requests."""

    def __init__(
        self,
        *,
        models: tuple[str, ...] = ("teacher-1",),
        key: str | None = None,
        faults: FaultPlan = no_faults,
        answer: Callable[[Mapping[str, Any]], str] = echo,
    ) -> None:
        self.models, self.key, self.faults, self.answer = models, key, faults, answer
        self.received: Counter[str] = Counter()
        """Requests by path, the faulty ones included."""
        self.bodies: list[dict[str, Any]] = []
        """Bodies of the chat requests that were carried out."""
        self.app: ASGIApp = _FaultyApp(self, Starlette(routes=self.routes()))

    def routes(self) -> list[Route]:
        return [Route(CHAT, self.chat, methods=["POST"]), Route("/v1/models", self.list_models)]

    def refusal(self, headers: Mapping[str, str]) -> Response | None:
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"detail": "Unauthorized"}, 401)
        return None

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        if wrong := self.wrong(body):
            return wrong
        self.bodies.append(body)
        return JSONResponse(self.completion(body))

    def wrong(self, body: Mapping[str, Any]) -> Response | None:
        if body["model"] not in self.models:
            return JSONResponse({"error": {"message": f"The model `{body['model']}` does not exist."}}, 404)
        if not 0 <= body.get("temperature", 0) <= 1.5:
            return JSONResponse({"error": {"message": "temperature must be between 0 and 1.5"}}, 422)
        return None

    def completion(self, body: Mapping[str, Any]) -> dict[str, Any]:
        text = self.answer(body)
        prompt_tokens = sum(len(str(message["content"])) for message in body["messages"])
        return {
            "id": "cmpl-" + hashlib.sha256(text.encode()).hexdigest()[:8],
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body.get("model", self.models[0]),
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": len(text),
                "total_tokens": prompt_tokens + len(text),
            },
        }

    async def list_models(self, request: Request) -> Response:
        data = [{"id": name, "object": "model", "created": 1, "owned_by": "vllm"} for name in self.models]
        return JSONResponse({"object": "list", "data": data})


class OpenAIServer(ChatServer):
    """The OpenAI protocol as vLLM speaks it: no key unless one is given."""


class MistralServer(ChatServer):
    """The Mistral protocol: chat, models, files and batch jobs, with a key.

    Args:
        polls: How many times a job must be looked at until it has ended.
        deliver: What becomes of a job's output lines before they are written: another order, losses, repetitions.
        ends_as: Status of an ended job.
        options: As for `ChatServer`.
    """

    def __init__(
        self,
        *,
        polls: int = 2,
        deliver: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda lines: lines,
        ends_as: str = "SUCCESS",
        **options: Any,
    ) -> None:
        super().__init__(**{"key": KEY, **options})
        self.polls, self.deliver, self.ends_as = polls, deliver, ends_as
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self._ids = itertools.count()

    def routes(self) -> list[Route]:
        return [
            *super().routes(),
            Route("/v1/files", self.upload, methods=["POST"]),
            Route("/v1/files/{id}/content", self.download),
            Route("/v1/batch/jobs", self.create_job, methods=["POST"]),
            Route("/v1/batch/jobs", self.list_jobs, methods=["GET"]),
            Route("/v1/batch/jobs/{id}", self.get_job, methods=["GET"]),
        ]

    def wrong(self, body: Mapping[str, Any]) -> Response | None:
        if body["model"] not in self.models:
            message = f"Invalid model: {body['model']}"
            return JSONResponse({"object": "error", "message": message, "type": "invalid_model", "code": "1500"}, 400)
        unknown = sorted(set(body) - {"model", "messages", "temperature", "top_p", "max_tokens", "random_seed",
                                      "response_format", "stream"})  # fmt: skip
        if unknown or not 0 <= body.get("temperature", 0) <= 1.5:
            at = unknown[0] if unknown else "temperature"
            return JSONResponse({"detail": [{"loc": ["body", at], "msg": "not permitted", "type": "value_error"}]}, 422)
        return None

    async def list_models(self, request: Request) -> Response:
        data = [
            {"id": name, "object": "model", "type": "base", "aliases": [f"{name}-latest"], "capabilities": {}}
            for name in self.models
        ]
        return JSONResponse({"object": "list", "data": data})

    async def upload(self, request: Request) -> Response:
        head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
        form = email.message_from_bytes(head + await request.body(), policy=email.policy.HTTP)
        parts = {str(part.get_param("name", header="content-disposition")): part for part in form.iter_parts()}
        assert parts["purpose"].get_content().strip() == "batch"
        content = parts["file"].get_payload(decode=True)
        file = self.store(content)
        return JSONResponse(
            {"id": file, "object": "file", "bytes": len(content), "created_at": 1, "purpose": "batch",
             "filename": parts["file"].get_filename(), "sample_type": "batch_request", "source": "upload"}
        )  # fmt: skip

    def store(self, content: bytes) -> str:
        file = f"file-{next(self._ids)}"
        self.files[file] = content
        return file

    async def download(self, request: Request) -> Response:
        return Response(self.files[request.path_params["id"]], media_type="application/octet-stream")

    async def create_job(self, request: Request) -> Response:
        body = await request.json()
        if wrong := self.wrong({"model": body["model"]}):
            return wrong
        lines = [json.loads(line) for file in body["input_files"] for line in self.files[file].splitlines()]
        job = {
            "id": f"job-{next(self._ids)}", "object": "batch", "input_files": body["input_files"],
            "endpoint": body["endpoint"], "model": body["model"], "metadata": body.get("metadata"), "errors": [],
            "status": "QUEUED", "created_at": int(time.time()), "total_requests": len(lines), "completed_requests": 0,
            "succeeded_requests": 0, "failed_requests": 0,
        }  # fmt: skip
        self.jobs[job["id"]] = {"job": job, "lines": lines, "looks": 0}
        return JSONResponse(job)

    async def list_jobs(self, request: Request) -> Response:
        page, size = int(request.query_params["page"]), int(request.query_params["page_size"])
        newest = [entry["job"] for entry in reversed(self.jobs.values())][page * size : (page + 1) * size]
        return JSONResponse({"object": "list", "total": len(self.jobs), "data": newest})

    async def get_job(self, request: Request) -> Response:
        entry = self.jobs.get(request.path_params["id"])
        if entry is None:
            return JSONResponse({"detail": "Job not found"}, 404)
        entry["looks"] += 1
        if entry["looks"] >= self.polls and "output_file" not in entry["job"]:
            self.end_job(entry)
        elif entry["looks"] < self.polls:
            entry["job"]["status"] = "RUNNING"
        return JSONResponse(entry["job"])

    def end_job(self, entry: dict[str, Any]) -> None:
        job = entry["job"]
        good, bad = [], []
        for line in entry["lines"]:
            body = {"model": job["model"], **line["body"]}
            refused = self.wrong(body)
            self.bodies.append(body)
            response = {"status_code": 200, "body": None if refused else self.completion(body)}
            if refused:
                response = {"status_code": refused.status_code, "body": json.loads(refused.body)}
            (bad if refused else good).append(
                {
                    "id": f"batch-{line['custom_id']}",
                    "custom_id": line["custom_id"],
                    "response": response,
                    "error": None,
                }
            )
        if self.ends_as == "FAILED":
            job["errors"] = [{"message": "broken file", "count": 1}]
        job |= {"status": self.ends_as, "completed_requests": len(good) + len(bad), "succeeded_requests": len(good)}
        for name, lines in (("output_file", self.deliver(good)), ("error_file", bad)):
            if lines:
                text = "\n".join(json.dumps(one, ensure_ascii=False) for one in lines)
                job[name] = self.store(text.encode())


class _FaultyApp:
    """Counts requests, asks for the key, and carries out the fault plan around an app."""

    def __init__(self, server: ChatServer, app: ASGIApp) -> None:
        self._server, self._app = server, app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        number = self._server.received[path]
        self._server.received[path] += 1
        refusal = self._server.refusal(Request(scope).headers)
        if refusal:
            await refusal(scope, receive, send)
            return
        fault = self._server.faults(path, number)
        match fault:
            case Status(code, headers, body):
                shape = body if body is not None else {"object": "error", "message": f"status {code}", "code": "1300"}
                await JSONResponse(shape, code, headers=dict(headers))(scope, receive, send)
                return
            case Delay(seconds):
                await asyncio.sleep(seconds)
            case Reset(late=False):
                _reset(send)
                return
        if not isinstance(fault, Reset | Truncated):
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await self._app(scope, receive, keep)
        if isinstance(fault, Reset):
            _reset(send)
        else:
            await _send_half(messages, send, promised=fault.promised)


async def _send_half(messages: list[Message], send: Send, *, promised: bool) -> None:
    body = b"".join(message.get("body", b"") for message in messages)
    half = body[: len(body) // 2]
    headers = [(name, value) for name, value in messages[0]["headers"] if name != b"content-length"]
    length = len(body) if promised else len(half)
    await send({**messages[0], "headers": [*headers, (b"content-length", str(length).encode())]})
    await send({"type": "http.response.body", "body": half, "more_body": promised})
    if promised:
        await asyncio.sleep(0.05)  # else the reset overtakes the half
        _reset(send)


def _reset(send: Any) -> None:
    """End the connection with RST. `send` is a method of uvicorn's request cycle, which holds the transport."""
    transport = send.__self__.transport
    linger_none = struct.pack("ii", 1, 0)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_none)
    transport.abort()
