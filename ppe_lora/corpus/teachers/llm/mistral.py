"""The hosted Mistral API, one question at a time, through the official client."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from difflib import get_close_matches

from mistralai.client import Mistral
from mistralai.client.errors import MistralError, NoResponseError
from mistralai.client.models import BaseModelCard, FTModelCard

from ppe_lora.corpus.teachers.llm.chat_format import mistral_body, read_reply
from ppe_lora.corpus.teachers.llm.exchange import Question, Refused, Reply
from ppe_lora.corpus.teachers.llm.http_failures import broken_connection, failure_of, http_client, one_attempt

KEY_VARIABLE = "MISTRAL_API_KEY"
_CHECK_S = 15.0


class MistralEndpoint:
    """Chat completions of the Mistral API.

    Args:
        server_url: Another address than `https://api.mistral.ai`, without `/v1`.
        timeout_s: Longest time of one attempt.

    Raises:
        Refused: The environment has no `MISTRAL_API_KEY`.
    """

    name = "mistral"

    def __init__(self, *, server_url: str | None = None, timeout_s: float = 120.0) -> None:
        self._http = http_client(timeout_s)
        self._client = Mistral(api_key=mistral_key(), server_url=server_url, async_client=self._http)
        self._timeout_s = timeout_s

    async def check(self, model: str) -> None:
        """Raise `Refused` for a key or a model that Mistral does not know, `Unavailable` where it cannot be reached."""
        async with mistral_attempt(_CHECK_S):
            listed = await self._client.models.list_async(timeout_ms=_ms(_CHECK_S))
        names: set[str] = set()
        for card in listed.data or []:
            if isinstance(card, BaseModelCard | FTModelCard):
                names |= {card.id, *(card.aliases or [])}
        if model not in names:
            near = get_close_matches(model, sorted(names), n=5, cutoff=0.3) or sorted(names)[:5]
            raise Refused(
                f"{self.name}: expected one of the {len(names)} models of the account; got {model!r}; "
                f"did you mean {' or '.join(near) or 'another account'}?"
            )

    async def ask(self, question: Question) -> Reply:
        """One attempt. Raises `Throttled`, `Unavailable` or `Refused`."""
        async with mistral_attempt(self._timeout_s):
            completion = await self._client.chat.complete_async(
                **mistral_body(question), timeout_ms=_ms(self._timeout_s)
            )
        return read_reply(self.name, question.key, completion.model_dump())

    async def close(self) -> None:
        """Give connections back."""
        await self._http.aclose()


def mistral_key() -> str:
    """The API key from the environment.

    Raises:
        Refused: There is none.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise Refused(
            f"{KEY_VARIABLE}: expected an API key in this environment variable; got none; make one at "
            f"https://console.mistral.ai and `export {KEY_VARIABLE}=...`"
        )
    return key


@asynccontextmanager
async def mistral_attempt(timeout_s: float) -> AsyncIterator[None]:
    """One call of the client, whose failures become `Throttled`, `Unavailable` or `Refused`."""
    where = MistralEndpoint.name
    async with one_attempt(where, timeout_s):
        try:
            yield
        except MistralError as error:
            raise failure_of(where, error.status_code, error.headers, error.body, KEY_VARIABLE) from error
        except NoResponseError as error:
            raise broken_connection(where, error) from error


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
