"""llama.cpp's own server: completions of token ids, a grammar, probabilities among chosen tokens."""

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, Field

from ppe_lora.engines.client import Asked, Engine

_PATH = "/completion"
_BIAS = 100.0
"""Added to the logits of the legal tokens: no other token reaches them, and among themselves nothing changes but the
last bits of a float32."""
_LEAST = -104.0
"""Log of what a float32 probability cannot be smaller than."""


class _Properties(BaseModel):
    total_slots: int = Field(ge=1)


class _Written(BaseModel):
    content: str


class _Probability(BaseModel):
    id: int
    prob: Annotated[float, Field(ge=0.0, le=1.01, allow_inf_nan=False)]


class _Place(BaseModel):
    top_probs: list[_Probability]


class _Places(BaseModel):
    completion_probabilities: list[_Place] = Field(min_length=1)


class LlamaCpp(Engine):
    """A `llama-server`."""

    concurrent = 1

    async def check(self) -> None:
        """See `Engine.check`. Afterwards as many requests are sent at once as the server has slots: it computes them
        together. With more, some would wait for ever, since it serves the newest before those that wait."""
        await super().check()
        self.concurrent = (await self._get("/props", _Properties)).total_slots

    async def guided_text(self, prompt_ids: Sequence[int], gbnf: str, max_tokens: int) -> str:
        found = await self._post(
            _PATH,
            {
                "prompt": list(prompt_ids),
                "n_predict": max_tokens,
                "temperature": 0.0,
                "grammar": gbnf,
                "cache_prompt": True,
            },
            _Written,
        )
        return found.content

    async def log_probs(self, asked: Sequence[Asked]) -> list[list[float]]:
        # In order: the server keeps the tokens of the last prompt, and the next one differs at its end only.
        return [await self._one(one) for one in asked]

    async def _one(self, asked: Asked) -> list[float]:
        found = await self._post(
            _PATH,
            {
                "prompt": asked.prompt_ids,
                "n_predict": 1,
                "temperature": 1.0,
                "samplers": ["temperature"],
                "logit_bias": [[token, _BIAS] for token in asked.legal],
                "n_probs": len(asked.legal),
                "post_sampling_probs": True,
                "cache_prompt": True,
            },
            _Places,
        )
        by_token = {one.id: one.prob for one in found.completion_probabilities[0].top_probs}
        if not set(by_token) <= set(asked.legal) or not any(by_token.values()):
            raise self._odd(_PATH, f"probabilities of tokens among {asked.legal}", by_token)
        return [math.log(by_token[token]) if by_token.get(token) else _LEAST for token in asked.legal]
