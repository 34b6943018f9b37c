"""The registered models behind the API: which one answers, what is counted, what the shadow model sees."""

import asyncio
import time
from collections.abc import Mapping
from typing import NamedTuple

from ppe_lora.cells import shown
from ppe_lora.corpus.filters import is_japanese
from ppe_lora.serving.backend import ApiError, Ask, Backend, Reply
from ppe_lora.serving.metrics import Metrics
from ppe_lora.serving.shadow import Shadow
from ppe_lora.serving.traces import Traces
from ppe_lora.tasks.scores import Language


class Answered(NamedTuple):
    """Replies in the order of the requests, who gave them, and how long it took."""

    replies: list[Reply]
    model: str
    latency_ms: float


class Service:
    """Answers requests with the model they name.

    Args:
        models: By name; the first one is the default unless another is named.
        default: The default model's name.
        metrics: Where answers are counted.
        shadow: Sees what the default model answers.
        traces: Gets every answer.
    """

    def __init__(
        self,
        models: Mapping[str, Backend],
        default: str | None,
        metrics: Metrics,
        shadow: Shadow | None = None,
        traces: Traces | None = None,
    ) -> None:
        self.models = dict(models)
        self.default = default or next(iter(self.models))
        self.metrics = metrics
        self._shadow, self._traces = shadow, traces
        metrics.watch_queues(self.models)

    async def answer(self, model: str | None, asks: list[Ask], arrived: float) -> Answered:
        """Answer requests with a model.

        Args:
            model: Its name; None is the default one.
            asks: The requests.
            arrived: When they were there as a whole, by `time.perf_counter`.

        Raises:
            ApiError: There is no such model, or it cannot answer.
        """
        name = self.default if model is None else model
        replies = await self.backend(name).answer(asks)
        seconds = time.perf_counter() - arrived
        self.metrics.answers.labels(name).inc(len(asks))
        self.metrics.latency.labels(name).observe(seconds)
        if self._shadow is not None and name == self.default:
            self._shadow.compare(asks, name, replies)
        latency_ms = round(seconds * 1000, 3)
        if self._traces is not None:
            self._traces.record(asks, name, replies, latency_ms)
        return Answered(replies, name, latency_ms)

    def backend(self, name: str) -> Backend:
        """The model of that name.

        Raises:
            ApiError: There is none.
        """
        if name not in self.models:
            raise ApiError(
                404, "model_not_found", f"model: expected one of {', '.join(self.models)}; got {shown(name)}"
            )
        return self.models[name]

    def problems(self) -> list[str]:
        """Models that cannot answer any more."""
        return [name for name, backend in self.models.items() if not backend.is_alive()]

    async def close(self) -> None:
        """Finish what is under way."""
        if self._shadow is not None:
            await self._shadow.close()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)
        for backend in self.models.values():
            await backend.close()


def language_of(request: str) -> Language:
    """The instruction's language for a request, told as the data pipeline tells it."""
    return "ja" if is_japanese(request) else "en"
