"""The process: one address, the models, uvicorn, and an end in which nobody is cut off."""

import gc
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from ppe_lora.console import console
from ppe_lora.errors import ServeError
from ppe_lora.network import read_key
from ppe_lora.recipe.track import is_weave_project
from ppe_lora.serving.app import create_api
from ppe_lora.serving.backend import Backend
from ppe_lora.serving.connections import Connections, Listener, most_connections, patient_protocol
from ppe_lora.serving.gate import Gate
from ppe_lora.serving.metrics import Metrics
from ppe_lora.serving.service import Service
from ppe_lora.serving.settings import API_KEY_VARIABLE, Settings
from ppe_lora.serving.shadow import Shadow
from ppe_lora.serving.sources import name_models, open_models, parse_source
from ppe_lora.serving.traces import Traces

_SEND_BUFFER_BYTES = 262_144
"""Of one connection, as large as an answer gets: the system would keep megabytes for a client that does not read."""
_LAST_BYTES_S = 2
"""After the drain, how long what was answered may take to leave: a client that does not read must not hold the end."""


def serve(sources: Sequence[str], settings: Settings) -> None:
    """Load the models and answer until SIGTERM or Ctrl-C.

    Raises:
        PpeError: The address is taken or unsafe, or a model cannot be served.
    """
    api_key = read_key(API_KEY_VARIABLE, "this server") or None
    if not settings.is_loopback and api_key is None:
        raise ServeError(
            f"--host {settings.host}: expected an API key in {API_KEY_VARIABLE} for an address that others can reach; "
            f"got none; `export {API_KEY_VARIABLE}=...`, or stay on 127.0.0.1"
        )
    if settings.trace is not None and not is_weave_project(settings.trace):
        raise ServeError(f"--trace: expected entity/project, for example my-team/ppe; got {settings.trace!r}")
    for proxy in settings.trusted_proxies:
        _check_network(proxy)
    named = name_models([parse_source(source) for source in sources], settings)
    listener = listen(settings)  # before the models: a port that is taken should not cost their loading
    try:
        metrics = Metrics()
        models = open_models(named, settings, lambda model, rows: metrics.batches.labels(model).observe(rows))
        gc.freeze()  # models stay: looking through them for garbage would hold up everybody
        gate = build_app(models, settings, metrics, api_key)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        said = f"http://{shown}:{port}/ answers with {', '.join(models)}; Ctrl-C ends it"
        make_server(gate, listener, settings, lambda: console.print(said)).run([listener])
    finally:
        listener.close()


def _check_network(proxy: str) -> None:
    try:
        ipaddress.ip_network(proxy)
    except ValueError:
        raise ServeError(
            f"--trusted-proxy: expected an address or a network, such as 127.0.0.1 or 10.0.0.0/8; got {proxy!r}"
        ) from None


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
    return Gate(api, settings, api_key, metrics, ["/", *api.openapi()["paths"]])


def _shadow(name: str, backend: Backend, path: Path) -> Shadow:
    try:
        return Shadow(name, backend, path)
    except OSError as error:
        raise ServeError(f"--shadow-log: expected a file that can be written; got {path}: {error.strerror}") from error


def make_server(
    gate: Gate, listener: Listener, settings: Settings, announce: Callable[[], None] = lambda: None
) -> "DrainingServer":
    """uvicorn as we run it; `run([listener])` answers until a signal, then drains. `announce` is called when clients
    can connect."""
    config = uvicorn.Config(
        gate,
        loop="asyncio",  # `Listener` and `PatientProtocol` are made for it
        http=patient_protocol(listener.connections, settings),
        ws="none",
        log_level="error",  # its warnings are about what clients send: a line for each would be theirs to write
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_keep_alive=15,
        timeout_graceful_shutdown=_LAST_BYTES_S,
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


def listen(settings: Settings) -> Listener:
    """Take the address, so that nobody else can.

    Raises:
        ServeError: It is taken, or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = Listener(family, Connections(most_connections(settings)))
        try:
            if os.name != "nt":  # there it would let two servers have one port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            listener.bind((settings.host, settings.port))
        except BaseException:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be one of a machine, such as a..b
        reason = error.strerror if isinstance(error, OSError) else error
        raise ServeError(
            f"{settings.host}:{settings.port}: expected a free address of this machine; got: {reason}; "
            "name another with --port or --host"
        ) from error
    return listener
