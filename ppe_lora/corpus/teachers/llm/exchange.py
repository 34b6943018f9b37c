"""What passes between a prompt, the client and an endpoint: a question, its reply, and how asking can fail."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from ppe_lora.artifacts import hash_json
from ppe_lora.errors import PpeError

Message = Mapping[str, str]
"""`role` and `content`, as chat interfaces take them."""


class Question(NamedTuple):
    """One request to a language model, whole: equal questions have equal keys, whoever asks them."""

    model: str
    messages: tuple[Message, ...]
    sampling: Mapping[str, Any]
    """`temperature`, `top_p`, `max_tokens`, `seed`; only what is set."""
    answer_schema: Mapping[str, Any] | None = None
    """JSON schema of the reply's text, for endpoints that can hold a model to it."""

    @property
    def key(self) -> str:
        """Content hash (16 hexadecimal digits) under which the reply is kept."""
        return hash_json([self.model, [dict(one) for one in self.messages], dict(self.sampling), self.answer_schema])


class Reply(NamedTuple):
    """What came back for a question."""

    key: str
    """The question's."""
    text: str
    """The assistant's message, unchecked."""
    finish_reason: str
    """`stop`, `length`, ... as the endpoint calls it."""
    prompt_tokens: int
    completion_tokens: int


class RateLimit(NamedTuple):
    """What an endpoint allows in any 60 seconds. None is no limit known."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    """Prompt and completion together."""


class Endpoint(Protocol):
    """One server that answers questions. It neither retries nor waits: the client does."""

    name: str
    """For messages and the raw log, such as `mistral` or the server's address."""

    async def check(self, model: str) -> None:
        """Fail at once, with the remedy, where no question can succeed: no key, nobody listening, unknown model."""
        ...

    async def ask(self, question: Question) -> Reply:
        """One attempt. Raises `Throttled`, `Unavailable` or `Refused`."""
        ...

    async def close(self) -> None:
        """Give connections back."""
        ...


class Throttled(PpeError):
    """The endpoint asks for fewer requests (429)."""

    def __init__(self, message: str, retry_after_s: float | None = None, limit: RateLimit | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """Seconds the endpoint asks to wait, from `Retry-After` or `X-RateLimit-Reset*`; None where it does not say."""
        self.limit = limit or RateLimit()
        """What the endpoint says it allows, from `X-RateLimit-Limit-*`."""


class Unavailable(PpeError):
    """This attempt failed and another may succeed: 5xx, 408, time-out, connection reset, a truncated answer."""

    def __init__(self, message: str, may_be_billed: bool = True) -> None:
        super().__init__(message)
        self.may_be_billed = may_be_billed
        """False only where the endpoint cannot have worked on the question, such as a refused connection."""


class Refused(PpeError):
    """No attempt of this question will succeed: 4xx other than 408 and 429."""
