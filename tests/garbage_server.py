"""A loopback server that answers everything wrongly, in one way."""

import asyncio
import gzip
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

Rewrite = Callable[[str, Any], Any]
"""From a request's path and body to what is answered: bytes as they are, anything else as JSON."""


class Garbage(NamedTuple):
    """One way to answer wrongly."""

    body: Rewrite | bytes
    status: int = 200
    headers: Mapping[str, str] = {"content-type": "application/json"}
    seconds_a_byte: float = 0.0


def bomb(size: int = 200_000_000) -> bytes:
    """A small gzip of very much white space."""
    return gzip.compress(b" " * size, compresslevel=1)


COMMON = {
    "no JSON": Garbage(b"upstream timed out"),
    "a list": Garbage(b"[1, 2]"),
    "HTML": Garbage(b"<html>proxy</html>", headers={"content-type": "text/html"}),
    "no body": Garbage(b""),
    "an empty object": Garbage(b"{}"),
    "nested deeply": Garbage(b"[" * 100_000),
    "no UTF-8": Garbage(b'{"choices": "\xff\xfe"}'),
    "a bomb": Garbage(bomb(), headers={"content-encoding": "gzip"}),
    "an unknown packing": Garbage(b"abc", headers={"content-encoding": "br"}),
    "broken gzip": Garbage(b"abc", headers={"content-encoding": "gzip"}),
    "a redirect": Garbage(b"", status=307, headers={"location": "http://127.0.0.1:9/elsewhere"}),
    "an error page": Garbage(b"<html>Bad Gateway</html>", status=502),
    "a byte a second": Garbage(b"{" * 60, seconds_a_byte=1.0),
}
"""What any server may answer, to anything."""


class GarbageServer:
    """Answers garbage at some paths, and what `right` says elsewhere.

    Args:
        garbage: How it is wrong.
        right: From path and body to a good answer.
        wrong_at: Paths at which it is wrong.
    """

    def __init__(self, garbage: Garbage, right: Rewrite, wrong_at: tuple[str, ...]) -> None:
        self.garbage, self.right, self.wrong_at = garbage, right, wrong_at
        self.received: list[str] = []
        self.app: ASGIApp = self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive()).get("more_body") or message.get("body"):
            body += message["body"]
            if not message.get("more_body"):
                break
        path, asked = scope["path"], json.loads(body) if body else None
        self.received.append(path)
        given = self.garbage if path in self.wrong_at else Garbage(self.right)
        said = given.body if isinstance(given.body, bytes) else given.body(path, asked)
        text = said if isinstance(said, bytes) else json.dumps(said).encode()
        headers = [(name.encode(), value.encode()) for name, value in given.headers.items()]
        await send({"type": "http.response.start", "status": given.status, "headers": headers})
        if given.seconds_a_byte:
            with suppress(asyncio.CancelledError):  # the server is stopped
                for place in range(len(text)):
                    await send({"type": "http.response.body", "body": text[place : place + 1], "more_body": True})
                    await asyncio.sleep(given.seconds_a_byte)
        await send({"type": "http.response.body", "body": text if not given.seconds_a_byte else b""})
