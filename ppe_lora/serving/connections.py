"""Connections: how many there may be, who makes room for others, and how long a client may keep the server waiting."""

import asyncio
import errno
import json
import logging
import os
import socket
import time
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ppe_lora.serving.backend import ApiError
from ppe_lora.serving.settings import Settings

logger = logging.getLogger(__name__)

_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_TELL_EVERY_S = 60.0
"""Between two lines of the log about full connections."""


def most_connections(settings: Settings) -> int:
    """How many connections may be open: `max_connections`, or half of the process's descriptors where that is less."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return settings.max_connections
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return settings.max_connections if limit < 0 else max(1, min(settings.max_connections, limit // 2))


class Connections:
    """The open connections, in the order of their last answer, or of their beginning.

    Where there are too many, the first ones whose clients keep the server waiting are closed: they have sent nothing or
    half a request, or do not read their answers. Nobody is closed whose request is being answered.

    Args:
        most: How many may be open.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[PatientProtocol, None] = {}
        self._arriving = 0
        self._closing = 0
        self._told = -_TELL_EVERY_S

    def make_room(self) -> bool:
        """Whether one more may be opened. If not, those that have waited longest are being closed."""
        if len(self._open) + self._arriving + self._closing < self._most:
            return True
        self._tell()
        waiting = (protocol for protocol in self._open if protocol.waits_for_client)
        for protocol in list(islice(waiting, 1 + self._most // 32)):  # several: the next ones are at the door
            del self._open[protocol]
            self._closing += 1
            protocol.transport.abort()
        return False

    @property
    def all_busy(self) -> bool:
        """Whether no connection is about to come or to go by itself."""
        return self._arriving + self._closing == 0

    def accepted(self) -> None:
        """A connection was accepted; `opened` follows."""
        self._arriving += 1

    def opened(self, protocol: "PatientProtocol") -> None:
        """A connection was opened."""
        self._arriving = max(0, self._arriving - 1)
        self._open[protocol] = None

    def answered(self, protocol: "PatientProtocol") -> None:
        """A connection has got an answer: it is the last to make room."""
        if protocol in self._open:
            del self._open[protocol]
            self._open[protocol] = None

    def lost(self, protocol: "PatientProtocol") -> None:
        """A connection was closed."""
        if protocol in self._open:
            del self._open[protocol]
        else:
            self._closing -= 1

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told >= _TELL_EVERY_S:
            self._told = now
            logger.warning(
                "%d connections are open, as many as may be; those that wait for their clients make room for new ones",
                self._most,
            )


class Listener(socket.socket):
    """A listening socket that always accepts: where connections or descriptors run out, somebody makes room.

    asyncio tries 2,048 times in a row to accept without a descriptor, logs each try and multiplies its later ones.
    """

    def __init__(self, family: socket.AddressFamily, connections: Connections) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self.connections = connections
        self._spare: BinaryIO = Path(os.devnull).open("rb")  # noqa: SIM115 (closed where a descriptor is needed)

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection.

        Raises:
            BlockingIOError: There will be room in a moment.
            ConnectionAbortedError: There was no room, and the client was turned away.
        """
        if not self.connections.make_room():
            if not self.connections.all_busy:
                raise BlockingIOError
            self._turn_away()
        try:
            accepted = super().accept()
        except OSError as error:
            if error.errno not in _NO_DESCRIPTOR:
                raise
            self._spare.close()
            self._turn_away()
        self.connections.accepted()
        return accepted

    def close(self) -> None:
        """Close it, and the descriptor kept for a client that has to be turned away."""
        self._spare.close()
        super().close()

    def _turn_away(self) -> None:
        """Take the next client and let it go at once: one left waiting would wake the event loop without end."""
        try:
            client, _ = super().accept()
            client.close()
        finally:
            if self._spare.closed:
                self._spare = Path(os.devnull).open("rb")  # noqa: SIM115
        raise ConnectionAbortedError


class PatientProtocol(H11Protocol):
    """uvicorn's protocol with limits on what a client may keep it waiting for: the headers of a request, and room to
    write an answer. uvicorn by itself waits for ever for both.

    Subclasses name the connections it belongs to, and the limits.
    """

    of: Connections
    settings: Settings
    _silence: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    @property
    def waits_for_client(self) -> bool:
        """Whether nothing happens here until the client sends, or reads."""
        return self._idle or self.cycle.more_body or self.flow.write_paused

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.of.opened(self)
        transport.set_write_buffer_limits(high=0)  # writing is paused whenever the system takes no more
        self._silence = self.loop.call_later(self.settings.read_timeout_s, self._close_silent)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._idle:
            self._forget_silence()
        elif self._silence is None:
            self._silence = self.loop.call_later(self.settings.read_timeout_s, self._close_silent)

    def on_response_complete(self) -> None:
        self.of.answered(self)
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(self.settings.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_silence()
        self.of.lost(self)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close at the server's end. A connection whose client broke the protocol cannot say goodbye any more."""
        try:
            super().shutdown()
        except h11.LocalProtocolError:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the form of every refusal, or hang up where an answer has already begun."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # what is under way cannot be answered any more
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = json.dumps(ApiError(400, "invalid_request_error", "expected an HTTP/1.1 request").body).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _should_upgrade(self) -> bool:
        return False  # to WebSocket or HTTP/2: the request is answered as it is, without uvicorn's two warnings

    def _forget_silence(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _close_silent(self) -> None:
        self._silence = None
        if self._idle:
            self.transport.close()


def patient_protocol(connections: Connections, settings: Settings) -> type[PatientProtocol]:
    """The protocol of a server's connections, as uvicorn wants it: a class."""
    return type("PatientProtocol", (PatientProtocol,), {"of": connections, "settings": settings})
