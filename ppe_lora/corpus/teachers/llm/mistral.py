"""The hosted Mistral API, one question at a time, through the official client."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from difflib import get_close_matches

import httpx2
from mistralai.client import Mistral
from mistralai.client.errors import MistralError, NoResponseError
from mistralai.client.models import BaseModelCard, FTModelCard

from ppe_lora import network
from ppe_lora.corpus.teachers.llm.chat_format import mistral_body, read_reply
from ppe_lora.corpus.teachers.llm.exchange import Question, Refused, Reply, Unavailable
from ppe_lora.corpus.teachers.llm.http_failures import broken_connection, failure_of, one_attempt

KEY_VARIABLE = "MISTRAL_API_KEY"
_ADDRESS = "https://api.mistral.ai"
_CHECK_S = 15.0


class MistralEndpoint:
    """Chat completions of the Mistral API.

    Args:
        server_url: Another address than `https://api.mistral.ai`, without `/v1`.
        timeout_s: Longest time of one attempt.

    Raises:
        Refused: The environment has no `MISTRAL_API_KEY`.
        NetworkError: The key, the address, or the environment's proxy or certificates cannot be used.
    """

    name = "mistral"

    def __init__(self, *, server_url: str | None = None, timeout_s: float = 120.0) -> None:
        self._client, self._http = mistral_client(server_url, timeout_s)
        self._timeout_s = timeout_s
        self._address = server_url or _ADDRESS

    async def check(self, model: str) -> None:
        """Raise `Refused` for a key or a model that Mistral does not know, `Unavailable` where it cannot be reached."""
        try:
            async with mistral_attempt(_CHECK_S):
                listed = await self._client.models.list_async(timeout_ms=_ms(_CHECK_S))
        except Unavailable as error:
            remedy = network.remedy(self._address, error.__cause__) if error.__cause__ else ""
            raise Unavailable(f"{error}; {remedy or 'check the network, then run the same command again'}") from error
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


def mistral_client(
    server_url: str | None, timeout_s: float, *, largest_bytes: int = network.LARGEST_BYTES
) -> tuple[Mistral, httpx2.AsyncClient]:
    """The official client with the key from the environment, and the HTTP client that it sends with, to be closed.

    Raises:
        Refused: There is no key.
        NetworkError: As `MistralEndpoint`.
    """
    key = network.read_key(KEY_VARIABLE, _ADDRESS)
    if not key:
        raise Refused(
            f"{KEY_VARIABLE}: expected an API key in this environment variable; got none; make one at "
            f"https://console.mistral.ai and `export {KEY_VARIABLE}=...`"
        )
    http = network.client(server_url or _ADDRESS, timeout_s, largest_bytes=largest_bytes, many=True)
    # A synchronous client that reads nothing of the environment: the official one would, and would follow redirects.
    unused = httpx2.Client(
        transport=httpx2.HTTPTransport(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)), trust_env=False
    )
    return Mistral(api_key=key, server_url=server_url, client=unused, async_client=http), http


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
