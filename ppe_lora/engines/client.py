"""What a serving engine answers, read over HTTP as the decoder reads it in process: guided text, exact distributions.

Prompts travel as token ids, so that the engine sees the very tokens that the student was trained on. Ollama takes no
ids and gives no chosen log-probabilities; it gets its prompt from a TEMPLATE (see `modelfile`), and free text is all
that it answers.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from ppe_lora import network
from ppe_lora.errors import EngineError

Answer = TypeVar("Answer", bound=BaseModel)
_SHOWN = 300


class Listed(BaseModel):
    """A model in a server's list."""

    id: str
    owned_by: str | None = None
    """Which kind of server it is: `vllm`, `llamacpp`, `library` (Ollama)."""


class _Models(BaseModel):
    data: list[Listed]


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
            timeout_s: Longest wait for one response, whatever drips in.

        Raises:
            NetworkError: No client can be made for the address.
        """
        self.url = url.rstrip("/")
        self.model = model
        self._timeout_s = timeout_s
        self._http = network.client(self.url, timeout_s)

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
        served = [one.id for one in await self.models()]
        if self.model not in served:
            raise self._odd("/v1/models", f"the model {self.model}", f"it serves {', '.join(served) or 'none'}")

    async def models(self) -> list[Listed]:
        """What it serves.

        Raises:
            EngineError: It cannot be reached, or gives no list of models.
        """
        return (await self._get("/v1/models", _Models)).data

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

    async def _get(self, path: str, expected: type[Answer]) -> Answer:
        return await self._send("GET", path, None, expected)

    async def _post(self, path: str, body: dict[str, Any], expected: type[Answer]) -> Answer:
        return await self._send("POST", path, body, expected)

    async def _send(self, method: str, path: str, body: dict[str, Any] | None, expected: type[Answer]) -> Answer:
        """One request, and its answer as far as `expected` reads it."""
        where = f"{self.url}{path}"
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._http.request(method, where, json=body)
        except TimeoutError as error:
            raise EngineError(f"{where}: expected an answer within {self._timeout_s:g} s; got none") from error
        except network.BROKEN as error:
            remedy = network.remedy(self.url, error) or "is the server up?"
            raise EngineError(f"{where}: expected an answer; got {type(error).__name__} ({error}); {remedy}") from error
        if response.status_code != 200:
            moved = network.redirected(response.status_code, response.headers.get("location"))
            got = moved or f"HTTP {response.status_code}: {_shown(response)}"
            raise EngineError(f"{where}: expected an answer; got {got}")
        try:
            return expected.model_validate_json(response.content)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            at = ".".join(map(str, problem["loc"])) or "the body"
            raise EngineError(
                f"{where}: expected an answer as this engine gives it; got a fault in {at} ({problem['msg']}): "
                f"{_shown(response)}; is it the engine that it is taken for, in a version that is known to work?"
            ) from error

    def _odd(self, path: str, expected: str, got: object) -> EngineError:
        return EngineError(f"{self.url}{path}: expected {expected}; got {str(got)[:_SHOWN]}")


def _shown(response: httpx2.Response) -> str:
    return " ".join(response.content[: 4 * _SHOWN].decode("utf-8", errors="replace").split())[:_SHOWN] or "nothing"
