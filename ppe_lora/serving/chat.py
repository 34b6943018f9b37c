"""A model behind any OpenAI-compatible address, such as Ollama's: greedy JSON, held to its schema."""

import asyncio

from ppe_lora.corpus.teachers.llm.exchange import Question
from ppe_lora.corpus.teachers.llm.openai_compatible import OpenAICompatibleEndpoint
from ppe_lora.corpus.teachers.llm.reader import answer_schema
from ppe_lora.export.contract import Contract
from ppe_lora.serving.backend import ApiError, Ask, Reply
from ppe_lora.serving.elsewhere import SPARE_S, Elsewhere
from ppe_lora.serving.settings import Settings
from ppe_lora.tasks.scores import Rejected

_MAX_TOKENS = 256
"""An engine that cannot be held to a schema is cut here."""


def check_engine(url: str, model: str) -> None:
    """See that the engine answers and serves the model.

    Raises:
        PpeError: It does not; the message says what to do.
    """

    async def check() -> None:
        endpoint = OpenAICompatibleEndpoint(url)
        try:
            await endpoint.check(model)
        finally:
            await endpoint.close()

    asyncio.run(check())


class ChatBackend(Elsewhere):
    """Asks an engine what our own decoder would be asked. Only text comes back, so there are no distributions.

    Args:
        contract: The task, and the instruction the model was trained with.
        url: The engine's address, as a rule with `/v1`.
        model: Its name there.
        settings: Time limit, and how many requests may be under way.
    """

    def __init__(self, contract: Contract, url: str, model: str, settings: Settings) -> None:
        super().__init__(settings.queue_rows, settings.answer_timeout_s)
        self.task = contract.task
        self._url = url
        self._model = model
        self._endpoint = OpenAICompatibleEndpoint(url, timeout_s=settings.answer_timeout_s + SPARE_S)

    async def _answer(self, ask: Ask) -> Reply:
        question = Question(
            model=self._model,
            messages=tuple(self.task.messages(ask.request, ask.language, ask.context)),
            sampling={"temperature": 0.0, "max_tokens": _MAX_TOKENS},
            answer_schema=answer_schema(self.task),
        )
        reply = await self._endpoint.ask(question)
        outcome = self.task.parse(reply.text)
        if isinstance(outcome, Rejected):
            raise ApiError(502, "engine_error", f"the model's engine gave no valid answer: {outcome.reason.value}")
        parameters = {key: self.task.round(value) for key, value in zip(self.task.keys, outcome.values, strict=True)}
        return Reply(parameters, None, False, reply.prompt_tokens, reply.completion_tokens)

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._endpoint.close()
