"""vLLM's OpenAI-compatible server: completions of token ids, a grammar, log-probabilities of chosen tokens."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, Field

from ppe_lora.engines.client import Asked, Engine
from ppe_lora.errors import EngineError

_PATH = "/v1/completions"

LogProb = Annotated[float, Field(le=0.01, allow_inf_nan=False)]
"""A little above 0 by rounding; vLLM writes -9999 for minus infinity."""


class _Written(BaseModel):
    text: str


class _Texts(BaseModel):
    choices: list[_Written] = Field(min_length=1)


class _LogProbs(BaseModel):
    top_logprobs: list[dict[str, LogProb]] = Field(min_length=1)


class _Place(BaseModel):
    index: int
    logprobs: _LogProbs


class _Places(BaseModel):
    choices: list[_Place]


class Vllm(Engine):
    """A vLLM server. Its prefix cache, on by default, makes the places of one answer cheap."""

    concurrent = 32

    async def guided_text(self, prompt_ids: Sequence[int], gbnf: str, max_tokens: int) -> str:
        found = await self._post(
            _PATH,
            {
                "model": self.model,
                "prompt": list(prompt_ids),
                "max_tokens": max_tokens,
                "temperature": 0.0,
                "structured_outputs": {"grammar": gbnf},
            },
            _Texts,
        )
        return found.choices[0].text

    async def log_probs(self, asked: Sequence[Asked]) -> list[list[float]]:
        # One request per set of legal tokens: a request has one list of tokens, and any number of prompts.
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, one in enumerate(asked):
            groups.setdefault(tuple(one.legal), []).append(index)
        read = await asyncio.gather(
            *(self._group([asked[index].prompt_ids for index in group], legal) for legal, group in groups.items())
        )
        by_index = {
            index: values
            for group, rows in zip(groups.values(), read, strict=True)
            for index, values in zip(group, rows, strict=True)
        }
        return [by_index[index] for index in range(len(asked))]

    async def _group(self, prompts: list[list[int]], legal: Sequence[int]) -> list[list[float]]:
        found = await self._post(
            _PATH,
            {
                "model": self.model,
                "prompt": prompts,
                "max_tokens": 1,
                "temperature": 0.0,
                "logprobs": 1,
                "logprob_token_ids": list(legal),
                "return_tokens_as_token_ids": True,
            },
            _Places,
        )
        by_index = {choice.index: choice.logprobs.top_logprobs[0] for choice in found.choices}
        if len(found.choices) != len(prompts) or set(by_index) != set(range(len(prompts))):
            raise self._odd(_PATH, f"{len(prompts)} choices, one a prompt", [choice.index for choice in found.choices])
        return [self._legal(by_index[index], legal) for index in range(len(prompts))]

    def _legal(self, top: dict[str, float], legal: Sequence[int]) -> list[float]:
        try:
            return [top[f"token_id:{token}"] for token in legal]
        except KeyError as error:
            raise EngineError(
                f"{self.url}{_PATH}: expected the log-probability of {error}; got those of {len(top)} other tokens; "
                "this version of vLLM does not know logprob_token_ids: use 0.32 or newer"
            ) from error
