"""A model behind vLLM or llama.cpp: the recipe's read-out, from the distribution of every score, read over HTTP."""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from ppe_lora.engines.client import Engine
from ppe_lora.engines.llama_cpp import LlamaCpp
from ppe_lora.engines.read_out import decode
from ppe_lora.engines.vllm import Vllm
from ppe_lora.serving.aside import aside
from ppe_lora.serving.backend import Ask, Reply
from ppe_lora.serving.elsewhere import SPARE_S, Elsewhere
from ppe_lora.serving.reading import Reader
from ppe_lora.serving.settings import Settings
from ppe_lora.tasks.scores import ScoresTask

_BY_OWNER: Mapping[str, type[Engine]] = {"vllm": Vllm, "llamacpp": LlamaCpp}
_CHECK_S = 15.0


class Found(NamedTuple):
    """An engine at an address, and how many requests at once it is good for."""

    kind: type[Engine]
    concurrent: int


def find_engine(url: str, model: str) -> Found | None:
    """Which engine serves a model, by what its list of models says; None for one that gives text only.

    Args:
        url: Where the model is served (see `chat.check_engine`).
        model: Its name there.

    Raises:
        EngineError: It does not answer as such an engine does.
    """
    if not url.rstrip("/").endswith("/v1"):  # behind something that moves paths: only chat is known to be there
        return None
    return asyncio.run(_find(_root(url), model))


async def _find(root: str, model: str) -> Found | None:
    async with Vllm(root, model, _CHECK_S) as any_engine:
        owners = [one.owned_by for one in await any_engine.models() if one.id == model]
    kind = _BY_OWNER.get(owners[0] or "") if owners else None
    if kind is None:
        return None
    async with kind(root, model, _CHECK_S) as engine:
        await engine.check()
        return Found(kind, engine.concurrent)


def _root(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


class EngineBackend(Elsewhere):
    """Reads from an engine what our own decoder would read in this process, but for the head, which no engine has.

    Args:
        task: What it is asked.
        reader: The model's prompts and read-out.
        found: The engine.
        url: Its address, with `/v1`.
        model: The model's name there.
        settings: Time limit, and how many requests may be under way.
    """

    def __init__(
        self, task: ScoresTask, reader: Reader, found: Found, url: str, model: str, settings: Settings
    ) -> None:
        super().__init__(settings.queue_rows, settings.answer_timeout_s)
        self.task = task
        self._reader = reader
        self._engine = found.kind(_root(url), model, settings.answer_timeout_s + SPARE_S)
        self._slots = asyncio.Semaphore(found.concurrent)

    async def _answer(self, ask: Ask) -> Reply:
        prompt = await aside(lambda: self._reader.prompt(ask))
        async with self._slots:
            decoded = await decode(self._engine, prompt, self._reader.trie)
        return self._reader.reply(len(prompt), self._reader.read(decoded))

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._engine.close()
