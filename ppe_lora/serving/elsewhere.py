"""What models have in common whose engine is another program: a limit of requests, and one meaning of each failure."""

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from ppe_lora.corpus.teachers.llm.exchange import Refused, Throttled, Unavailable
from ppe_lora.errors import EngineError
from ppe_lora.serving.backend import ApiError, Ask, Reply
from ppe_lora.serving.failures import log_failure

SPARE_S = 5.0
"""What an HTTP client waits longer than its backend does, so that a time-out is the backend's, whoever is slow."""


class Elsewhere(ABC):
    """What backends have in common whose engine is another program, with a queue of its own.

    Args:
        rows: How many requests may be under way at most; more are refused.
        timeout_s: Longest wait for an answer.
    """

    kind = "engine"

    def __init__(self, rows: int, timeout_s: float) -> None:
        self._rows = rows
        self._timeout_s = timeout_s
        self.waiting = 0

    def is_alive(self) -> bool:
        """See `Backend.is_alive`. The engine may come back at any time."""
        return True

    async def answer(self, asks: list[Ask]) -> list[Reply]:
        """See `Backend.answer`."""
        with self._taken(len(asks)):
            answers = [asyncio.ensure_future(self._answer(ask)) for ask in asks]
            try:
                async with asyncio.timeout(self._timeout_s):
                    return list(await asyncio.gather(*answers))
            except Exception as error:
                raise self._refusal(error) from error
            finally:
                for one in answers:
                    one.cancel()  # where one failed, nobody waits for the others

    @abstractmethod
    async def _answer(self, ask: Ask) -> Reply:
        """Answer one request.

        Raises:
            ApiError: The request does not fit the model.
            EngineError: The engine does not answer as asked.
        """

    def _refusal(self, error: Exception) -> ApiError:
        """What the client is told: 504 where the engine took too long, 503 where it asks to wait, else 502."""
        match error:
            case ApiError():
                return error
            case TimeoutError():
                return ApiError(504, "timeout", f"no answer within {self._timeout_s:g} s", retry_after_s=1)
            case Throttled():
                wait_s = math.ceil(error.retry_after_s or 1)
                return ApiError(503, "overloaded", "the model's engine asks to wait", wait_s)
            case Refused():
                return ApiError(502, "engine_error", "the model's engine refused the request")
            case Unavailable() | EngineError():
                return ApiError(502, "engine_error", "the model's engine does not answer", retry_after_s=1)
        failure = log_failure("reading the engine's answer", error)
        said = f"the model's engine answered with something else than an answer; the log says why under {failure}"
        return ApiError(502, "engine_error", said)

    @contextmanager
    def _taken(self, count: int) -> Iterator[None]:
        """Take room for requests, or refuse all of them.

        Raises:
            ApiError: There is not enough.
        """
        if self.waiting + count > self._rows:
            raise ApiError(503, "overloaded", "too many requests are under way; try again", retry_after_s=1)
        self.waiting += count
        try:
            yield
        finally:
            self.waiting -= count
