"""What a serving engine answers, read over HTTP as the decoder reads it in process: guided text, exact distributions.

Prompts travel as token ids, so that the engine sees the very tokens that the student was trained on. Ollama takes no
ids and gives no chosen log-probabilities; it gets its prompt from a TEMPLATE (see `modelfile`), and free text is all
that it answers.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx2

from ppe_lora.errors import EngineError

_SHOWN = 300


class Asked(NamedTuple):
    """A place in an answer to be read: the tokens in front of it, and the tokens that are legal there."""

    prompt_ids: list[int]
    legal: list[int]


class Engine(ABC):
    """A serving engine at a URL. Use as an asynchronous context manager, or call `close`."""

    concurrent: int
    """How many requests at once it is good for; `check` may learn more."""

    def __init__(self, url: str, model: str, timeout_s: float = 120.0) -> None:
        """
        Args:
            url: Where the server is, without a path: `http://127.0.0.1:8000`.
            model: The name that it serves the model by.
            timeout_s: Longest wait for one response.
        """
        self.url = url.rstrip("/")
        self.model = model
        self._http = httpx2.AsyncClient(timeout=httpx2.Timeout(timeout_s, connect=10.0))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def check(self) -> None:
        """Raise EngineError unless the server answers and serves the model."""
        served = [model["id"] for model in (await self._get("/v1/models"))["data"]]
        if self.model not in served:
            raise self._odd("/v1/models", f"the model {self.model}", f"it serves {', '.join(served)}")

    @abstractmethod
    async def guided_text(self, prompt_ids: Sequence[int], gbnf: str, max_tokens: int) -> str:
        """The greedy text behind a prompt, held to a grammar.

        Raises:
            EngineError: The engine cannot be reached, or refuses.
        """

    @abstractmethod
    async def log_probs(self, asked: Sequence[Asked]) -> list[list[float]]:
        """Per place the log-probabilities of its legal tokens, each up to a constant of its place.

        Raises:
            EngineError: The engine cannot be reached, refuses, or leaves a token out.
        """

    async def _get(self, path: str) -> Any:
        return await self._send("GET", path, None)

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        return await self._send("POST", path, body)

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        where = f"{self.url}{path}"
        try:
            response = await self._http.request(method, where, json=body)
        except (httpx2.HTTPError, OSError) as error:
            raise EngineError(
                f"{where}: expected an answer; got {type(error).__name__} ({error}); is the server up?"
            ) from error
        if response.status_code != 200:
            raise EngineError(f"{where}: expected an answer; got HTTP {response.status_code}: {response.text[:_SHOWN]}")
        try:
            return response.json()
        except json.JSONDecodeError as error:
            raise EngineError(f"{where}: expected JSON; got {response.text[:_SHOWN]!r}") from error

    def _odd(self, path: str, expected: str, got: object) -> EngineError:
        return EngineError(f"{self.url}{path}: expected {expected}; got {str(got)[:_SHOWN]}")
