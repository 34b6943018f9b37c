"""What a registered model is to the API, whichever way it computes."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from ppe_lora.tasks.scores import Language, ScoresTask


class Ask(NamedTuple):
    """One request to a model."""

    request: str
    language: Language
    context: Mapping[str, str] | None = None


class Spread(NamedTuple):
    """How sure a model is of one score, in task units."""

    sd: float
    low: float
    high: float


class Reply(NamedTuple):
    """A model's answer to one request."""

    parameters: dict[str, float]
    spread: dict[str, Spread] | None
    """Per key; None where the model gives only text."""
    calibrated: bool
    """Whether the intervals covered 80 % of validation targets, rather than being the distribution's own."""
    prompt_tokens: int
    answer_tokens: int


class Backend(Protocol):
    """A registered model."""

    task: ScoresTask
    kind: str
    """What it is, for people: merged weights, an adapter, a base model without tuning, another engine."""

    async def answer(self, asks: list[Ask]) -> list[Reply]:
        """Answer requests, in their order.

        Raises:
            ApiError: A request does not fit the model, too many wait, or no answer came in time.
        """

    @property
    def waiting(self) -> int:
        """How many requests wait for it."""

    def is_alive(self) -> bool:
        """Whether it can still answer."""

    async def close(self) -> None:
        """Finish what it has begun, and stop."""


class ApiError(Exception):
    """A refusal with its HTTP status; the message is for the client."""

    def __init__(self, status: int, kind: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, dict[str, str]]:
        """The JSON that every refusal has, in the form that OpenAI's clients read."""
        return {"error": {"message": self.message, "type": self.kind}}

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
