"""What every request passes before the API sees it: who asks, how often, how much, how slowly, and whether we close."""

import asyncio
import ipaddress
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ppe_lora.serving.backend import ApiError
from ppe_lora.serving.failures import log_failure
from ppe_lora.serving.keys import KeyCheck
from ppe_lora.serving.metrics import Metrics
from ppe_lora.serving.settings import Settings

_OPEN = ("/", "/health", "/ready")
"""Paths that need no key: the page holds no secret, and probes have none."""
_ALWAYS = ("/health", "/ready", "/metrics")
"""Paths that are answered while the server drains."""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_LINGER_S = 1.0
"""How long the rest of a refused body is read, and forgotten."""
_SHUTTING_DOWN = ApiError(503, "shutting_down", "the server is shutting down; try again", retry_after_s=5)


class _Disconnected(Exception):
    """The client went away while it sent its request."""


def _lingering(receive: Receive, send: Send) -> Send:
    """`send`, which reads on for a moment before it ends the response.

    The connection closes with it, and a close with unread bytes is a reset, which takes the refusal from the client
    that is still sending (RFC 9112, 9.6).
    """

    async def linger(message: Message) -> None:
        if message["type"] != "http.response.body":
            await send(message)
            return
        await send({**message, "more_body": True})
        try:
            async with asyncio.timeout(_LINGER_S):
                while (await receive()).get("more_body", False):
                    pass
        except TimeoutError:
            pass
        await send({"type": "http.response.body"})

    return linger


class _Response:
    """`send`, which completes the headers, counts the response, and knows how far it is."""

    def __init__(self, gate: "Gate", scope: Scope, send: Send) -> None:
        self._gate, self._scope, self._send = gate, scope, send
        self.status: int | None = None
        """None until it begins."""
        self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._gate.count(self._scope["path"], message["status"])
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if self._gate.draining:
                headers["Connection"] = "close"
        self.complete = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)


class Gate:
    """ASGI middleware around the whole API.

    Args:
        app: The API.
        settings: Limits.
        api_key: What clients must send as `Authorization: Bearer KEY`; None asks for no key.
        metrics: Counts responses.
        paths: The API's paths, the only ones that become labels.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, api_key: str | None, metrics: Metrics, paths: Sequence[str]
    ) -> None:
        self._app = app
        self._settings = settings
        self._key = KeyCheck(api_key, settings.wrong_keys_per_minute) if api_key else None
        self._metrics = metrics
        self._paths = frozenset(paths)
        self._rate = RateLimitItemPerMinute(settings.requests_per_minute) if settings.requests_per_minute else None
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self.running = 0
        """Requests under way."""
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        response = _Response(self, scope, send)
        self.running += 1
        try:
            await self._serve(scope, receive, response)
        except _Disconnected:
            pass
        except asyncio.CancelledError:  # the server ends, and nobody waits any longer
            if response.status is None:
                await _refuse(_SHUTTING_DOWN, scope, receive, response)
        except Exception as error:
            if response.status != 500:  # Starlette raises again what the API has logged and answered
                log_failure(f"{scope['method']} {scope['path']!r}", error)
        finally:
            self.running -= 1

    def count(self, path: str, status: int) -> None:
        """Count a response."""
        self._metrics.responses.labels(path if path in self._paths else "other", str(status)).inc()

    async def _serve(self, scope: Scope, receive: Receive, response: _Response) -> None:
        try:
            self._admit(scope)
            body = await self._read(scope, receive)
        except ApiError as refusal:
            await _refuse(refusal, scope, receive, _lingering(receive, response))
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # uvicorn leaves the body out
        told = {"draining": self.draining, "arrived": time.perf_counter()}
        await self._answer({**scope, **told}, body, receive, response)

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, response: _Response) -> None:
        """Have the API answer; when the client hangs up, what it asked for is given up."""
        left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        this = asyncio.current_task()
        assert this is not None
        gone = asyncio.ensure_future(receive())  # the body is there: what comes is the end of the connection

        def give_up(_: object) -> None:
            if not response.complete:
                this.cancel()

        async def replay() -> Message:
            return left.pop() if left else await asyncio.shield(gone)

        gone.add_done_callback(give_up)
        try:
            await self._app(scope, replay, response)
        except asyncio.CancelledError:
            if gone.done() and not gone.cancelled():
                this.uncancel()
                raise _Disconnected from None
            raise
        finally:
            gone.remove_done_callback(give_up)
            gone.cancel()

    def _admit(self, scope: Scope) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        if self.draining and path not in _ALWAYS:
            raise _SHUTTING_DOWN
        if self._key is None and self._settings.is_loopback and not _is_own_name(headers.get("host", "")):
            # A web page elsewhere could have its own name resolve to this machine, and read the answers.
            raise ApiError(400, "invalid_request_error", "host: expected localhost or an address")
        client = _client(scope)
        if self._key is not None and path not in _OPEN:
            self._key.check(client, headers.get("authorization", ""))
        if self._rate is not None and path not in _ALWAYS and not self._limiter.hit(self._rate, client):
            raise ApiError(429, "rate_limit", f"expected at most {self._rate.amount} requests a minute", 60)
        if (coding := headers.get("content-encoding", "identity").lower()) != "identity":
            raise ApiError(415, "invalid_request_error", f"content-encoding: expected none; got {coding[:40]!r}")

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, within the limits of size and time."""
        longest = self._settings.max_body_bytes
        too_large = ApiError(413, "invalid_request_error", f"expected a body of at most {longest:,} bytes")
        stated = Headers(scope=scope).get("content-length", "")
        if stated.isdigit() and int(stated) > longest:
            raise too_large
        parts = bytearray()
        try:
            async with asyncio.timeout(self._settings.read_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Disconnected
                    parts += message.get("body", b"")
                    if len(parts) > longest:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(parts)
        except TimeoutError:
            limit = self._settings.read_timeout_s
            raise ApiError(408, "invalid_request_error", f"expected the whole request within {limit:g} s") from None


async def _refuse(refusal: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    headers = {**refusal.headers, "Connection": "close"}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    await JSONResponse(refusal.body, refusal.status, headers)(scope, receive, send)


def _client(scope: Scope) -> str:
    """Whom limits count: an address, or the network of 2^64 addresses that one IPv6 client has."""
    host = scope["client"][0] if scope.get("client") else "unknown"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)


def _is_own_name(host: str) -> bool:
    """Whether a `Host` is localhost or an address, which no other site's page can be called."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name) is not None
    except ValueError:
        return False
