"""What every request passes before the API sees it: who asks, how often, how much, how slowly, and whether we close."""

import asyncio
import hmac
from collections.abc import Sequence

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ppe_lora.serving.backend import ApiError
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
        self._key = api_key.encode() if api_key else None
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
        self.running += 1
        try:
            await self._serve(scope, receive, self._watched(scope, send))
        except _Disconnected:
            pass
        finally:
            self.running -= 1

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._admit(scope)
            body = await self._read(scope, receive)
        except ApiError as refusal:
            headers = {**refusal.headers, "Connection": "close"}
            if refusal.status == 401:
                headers["WWW-Authenticate"] = "Bearer"
            await JSONResponse(refusal.body, refusal.status, headers)(scope, receive, _lingering(receive, send))
            return
        left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return left.pop() if left else await receive()

        await self._app({**scope, "draining": self.draining}, replay, send)

    def _admit(self, scope: Scope) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        if self.draining and path not in _ALWAYS:
            raise ApiError(503, "shutting_down", "the server is shutting down; try again", retry_after_s=5)
        if self._key is not None and path not in _OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
                raise ApiError(401, "authentication_error", "expected the header `Authorization: Bearer KEY`")
        if self._rate is not None and path not in _ALWAYS:
            client = scope["client"][0] if scope.get("client") else "unknown"
            if not self._limiter.hit(self._rate, client):
                raise ApiError(429, "rate_limit", f"expected at most {self._rate.amount} requests a minute", 60)

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

    def _watched(self, scope: Scope, send: Send) -> Send:
        """`send`, which counts the response and completes its headers."""

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self._paths else "other"
                self._metrics.responses.labels(path, str(message["status"])).inc()
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if self.draining:
                    headers["Connection"] = "close"
            await send(message)

        return watched
