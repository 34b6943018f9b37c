"""Any server that speaks the OpenAI protocol: vLLM, llama.cpp, Ollama, hosted ones; through the official client."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx2
from openai import APIConnectionError, APIStatusError, AsyncOpenAI

from ppe_lora import network
from ppe_lora.corpus.teachers.llm.chat_format import openai_body, read_reply
from ppe_lora.corpus.teachers.llm.exchange import Question, Refused, Reply, Unavailable
from ppe_lora.corpus.teachers.llm.http_failures import broken_connection, failure_of, one_attempt

_CHECK_S = 15.0
_LISTED = 20


class OpenAICompatibleEndpoint:
    """Chat completions of one OpenAI-compatible server.

    Args:
        base_url: Its address, as a rule with `/v1`: `http://localhost:8000/v1`.
        key_variable: Environment variable that holds its API key; None for servers that want none.
        timeout_s: Longest time of one attempt.

    Raises:
        Refused: `key_variable` is named and not set.
        NetworkError: The key, the address, or the environment's proxy or certificates cannot be used.
    """

    def __init__(self, base_url: str, *, key_variable: str | None = None, timeout_s: float = 120.0) -> None:
        self.name = base_url
        self._key_variable = key_variable
        self._timeout_s = timeout_s
        key = network.read_key(key_variable, base_url) if key_variable else "none"
        if not key:
            raise Refused(
                f"{key_variable}: expected the API key of {base_url} in this environment variable; got none; "
                f"`export {key_variable}=...`"
            )
        # An explicit key, even for servers that ignore it: the client would send OPENAI_API_KEY to whoever listens.
        http = network.client(base_url, timeout_s, many=True)
        self._client = AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=timeout_s, http_client=http)

    async def check(self, model: str) -> None:
        """Raise `Unavailable` where nobody answers, `Refused` for a model that is not served; both say what to do."""
        try:
            async with self._attempt(_CHECK_S):
                response = await self._client.models.with_raw_response.list(timeout=_CHECK_S)
        except Unavailable as error:
            port = urlsplit(self.name).port or 80
            start = f"start a server, for example `vllm serve {model} --port {port}`, or mend the address"
            remedy = network.remedy(self.name, error.__cause__) if error.__cause__ else ""
            raise Unavailable(f"{error}; {remedy or start}") from error
        except Refused as error:
            if self.name.rstrip("/").endswith("/v1"):
                raise
            raise Refused(f"{error}; an address ends in /v1 as a rule") from error
        served = self._served(response.text)
        if model not in served:
            listed = ", ".join(served[:_LISTED]) + (", ..." if len(served) > _LISTED else "")
            raise Refused(
                f"{self.name}: expected a served model; got {model!r}; it serves {listed or 'none'}; name one of "
                f"these, or start the server with `vllm serve {model}` or `--served-model-name {model}`"
            )

    async def ask(self, question: Question) -> Reply:
        """One attempt. Raises `Throttled`, `Unavailable` or `Refused`.

        `chat.completions.create` would send the same, after a look at every field of the body and before one at every
        field of the reply: together a quarter of the processor time.
        """
        async with self._attempt(self._timeout_s):
            response = await self._client.post("/chat/completions", cast_to=httpx2.Response, body=openai_body(question))
        return read_reply(self.name, question.key, response.text)

    async def close(self) -> None:
        """Give connections back."""
        await self._client.close()

    def _served(self, body: str) -> list[str]:
        try:
            return [str(model["id"]) for model in json.loads(body)["data"] or []]
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(
                f"{self.name}: expected a list of models at {self.name}/models; got something else; mend the address"
            ) from error

    @asynccontextmanager
    async def _attempt(self, timeout_s: float) -> AsyncIterator[None]:
        async with one_attempt(self.name, timeout_s):
            try:
                yield
            except APIStatusError as error:
                response = error.response
                raise failure_of(
                    self.name, error.status_code, response.headers, response.text, self._key_variable
                ) from error
            except APIConnectionError as error:
                raise error.__cause__ or broken_connection(self.name, error) from error
