"""A model behind vLLM or llama.cpp: the recipe's read-out, from the distribution of every score, read over HTTP."""

import asyncio
from collections.abc import Mapping

import httpx2

from ppe_lora.engines.client import Engine
from ppe_lora.engines.llama_cpp import LlamaCpp
from ppe_lora.engines.read_out import decode
from ppe_lora.engines.vllm import Vllm
from ppe_lora.errors import EngineError
from ppe_lora.serving.backend import ApiError, Ask, Reply, Room
from ppe_lora.serving.reading import Reader
from ppe_lora.serving.settings import Settings
from ppe_lora.tasks.scores import ScoresTask

_BY_OWNER: Mapping[str, type[Engine]] = {"vllm": Vllm, "llamacpp": LlamaCpp}
_CHECK_S = 15.0


def find_engine(url: str, model: str) -> type[Engine] | None:
    """Which engine serves a model, by what its list of models says; None for one that gives text only.

    Args:
        url: Where the model is served (see `chat.check_engine`).
        model: Its name there.
    """
    if not url.rstrip("/").endswith("/v1"):  # behind something that moves paths: only chat is known to be there
        return None
    listed = httpx2.get(f"{url.rstrip('/')}/models", timeout=_CHECK_S).json()["data"]
    return next((_BY_OWNER.get(str(one.get("owned_by"))) for one in listed if one["id"] == model), None)


class EngineBackend:
    """Reads from an engine what our own decoder would read in this process, but for the head, which no engine has.

    Args:
        task: What it is asked.
        reader: The model's prompts and read-out.
        engine: The server; it is closed with the backend.
        settings: Time limit, and how many requests may be under way.
    """

    kind = "engine"

    def __init__(self, task: ScoresTask, reader: Reader, engine: Engine, settings: Settings) -> None:
        self.task = task
        self._reader = reader
        self._engine = engine
        self._room = Room(settings.queue_rows)
        self._slots = asyncio.Semaphore(engine.concurrent)
        self._timeout_s = settings.answer_timeout_s

    async def answer(self, asks: list[Ask]) -> list[Reply]:
        """See `Backend.answer`."""
        prompts = [self._reader.prompt(ask) for ask in asks]
        with self._room.taken(len(asks)):
            try:
                async with asyncio.timeout(self._timeout_s):
                    return list(await asyncio.gather(*map(self._answer, prompts)))
            except TimeoutError:
                raise ApiError(504, "timeout", f"no answer within {self._timeout_s:g} s", retry_after_s=1) from None
            except EngineError as error:
                raise ApiError(502, "engine_error", "the model's engine does not answer", retry_after_s=1) from error

    async def _answer(self, prompt: list[int]) -> Reply:
        async with self._slots:
            decoded = await decode(self._engine, prompt, self._reader.trie)
        return self._reader.reply(len(prompt), self._reader.read(decoded))

    @property
    def waiting(self) -> int:
        """How many requests are under way."""
        return self._room.used

    def is_alive(self) -> bool:
        """See `Backend.is_alive`. The engine may come back at any time."""
        return True

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._engine.close()
