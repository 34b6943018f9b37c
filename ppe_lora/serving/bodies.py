"""Bodies of requests: read by the one rule of JSON, beside the event loop where they are large."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from ppe_lora.cells import parse_json
from ppe_lora.serving.aside import aside

_LARGE_BYTES = 8192
_MOST_VALUES = 2048
"""Values in one body, more than any client of ours has: what is wrong with each is told by itself, which takes time."""


class StrictRoute(APIRoute):
    """A route whose JSON has no key twice, no NaN, no half characters, and is not nested without end."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


class _StrictRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return await aside(lambda: _read(body)) if len(body) > _LARGE_BYTES else _read(body)
        except ValueError as error:
            raise HTTPException(400, f"body: {error}") from error


def _read(body: bytes) -> Any:
    value = parse_json(body)
    left, level = _MOST_VALUES, [value]
    while level and left >= 0:
        left -= len(level)
        level = [
            below
            for node in level
            if isinstance(node, dict | list)
            for below in (node.values() if isinstance(node, dict) else node)
        ]
    if left < 0:
        raise HTTPException(413, f"body: expected at most {_MOST_VALUES:,} values; got more")
    return value
