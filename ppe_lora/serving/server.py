"""The process: one address, the models, uvicorn, and an end in which nobody is cut off."""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ppe_lora.console import console
from ppe_lora.errors import ServeError
from ppe_lora.recipe.track import is_weave_project
from ppe_lora.serving.app import create_api
from ppe_lora.serving.backend import Backend
from ppe_lora.serving.gate import Gate
from ppe_lora.serving.metrics import Metrics
from ppe_lora.serving.service import Service
from ppe_lora.serving.settings import API_KEY_VARIABLE, Settings
from ppe_lora.serving.shadow import Shadow
from ppe_lora.serving.sources import name_models, open_models, parse_source
from ppe_lora.serving.traces import Traces

_LOOPBACK_NAMES = ["localhost", "127.0.0.1", "[::1]"]


def serve(sources: Sequence[str], settings: Settings) -> None:
    """Load the models and answer until SIGTERM or Ctrl-C.

    Raises:
        PpeError: The address is taken or unsafe, or a model cannot be served.
    """
    api_key = os.environ.get(API_KEY_VARIABLE, "").strip() or None
    if not settings.is_loopback and api_key is None:
        raise ServeError(
            f"--host {settings.host}: expected an API key in {API_KEY_VARIABLE} for an address that others can reach; "
            f"got none; `export {API_KEY_VARIABLE}=...`, or stay on 127.0.0.1"
        )
    if settings.trace is not None and not is_weave_project(settings.trace):
        raise ServeError(f"--trace: expected entity/project, for example my-team/ppe; got {settings.trace!r}")
    named = name_models([parse_source(source) for source in sources], settings)
    listener = listen(settings)  # before the models: a port that is taken should not cost their loading
    try:
        metrics = Metrics()
        models = open_models(named, settings, lambda model, rows: metrics.batches.labels(model).observe(rows))
        gate = build_app(models, settings, metrics, api_key)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        said = f"http://{shown}:{port}/ answers with {', '.join(models)}; Ctrl-C ends it"
        make_server(gate, settings, lambda: console.print(said, markup=False)).run([listener])
    finally:
        listener.close()


def build_app(models: dict[str, Backend], settings: Settings, metrics: Metrics, api_key: str | None = None) -> Gate:
    """The whole ASGI application: the API behind its gate.

    Raises:
        ServeError: The shadow's log or the traces' folder cannot be written.
    """
    shadow = traces = None
    if settings.shadow is not None:
        shadow = _shadow(settings.shadow, models[settings.shadow], Path(settings.shadow_log))
    if settings.trace is not None:
        traces = Traces(settings.trace, Path(settings.trace_dir), metrics.dropped_traces)
    service = Service(models, settings.default, metrics, shadow, traces)
    api = create_api(service)
    app: ASGIApp = api
    if settings.is_loopback:
        # A web page elsewhere could otherwise have its own name resolve to this machine, and read the answers.
        app = TrustedHostMiddleware(api, allowed_hosts=_LOOPBACK_NAMES, www_redirect=False)
    return Gate(app, settings, api_key, metrics, ["/", *api.openapi()["paths"]])


def _shadow(name: str, backend: Backend, path: Path) -> Shadow:
    try:
        return Shadow(name, backend, path)
    except OSError as error:
        raise ServeError(f"--shadow-log: expected a file that can be written; got {path}: {error.strerror}") from error


def make_server(gate: Gate, settings: Settings, announce: Callable[[], None] = lambda: None) -> "DrainingServer":
    """uvicorn as we run it; `run([listener])` answers at a bound socket until a signal, then drains. `announce` is
    called when clients can connect."""
    config = uvicorn.Config(
        gate,
        http=_patient_protocol(settings.read_timeout_s),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(settings.drain_s) + 1,
    )
    return DrainingServer(config, gate, settings.drain_s, announce)


class DrainingServer(uvicorn.Server):
    """While it drains it goes on listening, to say 503, until running requests are answered; then it stops."""

    def __init__(self, config: uvicorn.Config, gate: Gate, drain_s: float, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce
        self._gate = gate
        self._drain_s = drain_s
        self._deadline: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._announce()

    def drain(self) -> None:
        """Take no new requests, and stop when the running ones are answered."""
        self._gate.draining = True
        self._deadline = time.monotonic() + self._drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """At the first signal, drain; at the second, stop."""
        if self._deadline is None:
            self.drain()
        else:
            super().handle_exit(sig, frame)
            self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Stop when nothing runs any more, or when it has lasted too long."""
        if self._deadline is not None and (self._gate.running == 0 or time.monotonic() > self._deadline):
            return True
        return await super().on_tick(counter)


def _patient_protocol(limit_s: float) -> type[H11Protocol]:
    """uvicorn's protocol, which by itself waits for ever for the headers of a request."""

    class PatientProtocol(H11Protocol):
        _silence: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._silence = self.loop.call_later(limit_s, self._close_silent)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            idle = self.cycle is None or self.cycle.response_complete
            if idle and self._silence is None:
                self._silence = self.loop.call_later(limit_s, self._close_silent)
            elif not idle:
                self._forget()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _forget(self) -> None:
            if self._silence is not None:
                self._silence.cancel()
                self._silence = None

        def _close_silent(self) -> None:
            self._silence = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return PatientProtocol


def listen(settings: Settings) -> socket.socket:
    """Take the address, so that nobody else can.

    Raises:
        ServeError: It is taken, or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ServeError(
            f"{settings.host}:{settings.port}: expected a free address of this machine; got: {error.strerror}; "
            "name another with --port or --host"
        ) from error
    return listener
