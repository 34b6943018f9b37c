"""Bodies of the API: what may be sent, and what comes back."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from ppe_lora.cells import request_of
from ppe_lora.tasks.scores import Language

MAX_REQUEST_CHARS = 4000
MAX_BATCH = 64

# `request_of` has no words in a JSON schema; the pattern is what generated clients can check of it.
_SEEN: dict[str, Any] = {"pattern": r"\S"}
RequestText = Annotated[str, Field(max_length=MAX_REQUEST_CHARS, json_schema_extra=_SEEN), AfterValidator(request_of)]
ContextText = Annotated[str, Field(max_length=200, json_schema_extra=_SEEN), AfterValidator(request_of)]
ModelName = Annotated[str, StringConstraints(max_length=200)]


class Strict(BaseModel):
    """A body of our own API: unknown keys and values of a neighbouring type are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class OneRequest(Strict):
    """A request in a person's own words, and the circumstances it was made in."""

    request: RequestText = Field(examples=["Something soft for a rainy evening"])
    context: dict[ContextText, ContextText] | None = Field(
        default=None, max_length=16, examples=[{"weather": "rain", "time": "night"}]
    )
    language: Language | None = Field(default=None, description="Of the instruction; null goes by the request.")


class InterpreterRequest(OneRequest):
    """Body of `POST /api/interpreter`."""

    model: ModelName | None = Field(default=None, description="A registered model; null is the default one.")


class BatchRequest(Strict):
    """Body of `POST /api/interpreter/batch`."""

    requests: list[OneRequest] = Field(min_length=1, max_length=MAX_BATCH)
    model: ModelName | None = None


class ScoreUncertainty(Strict):
    """How sure the model is of one score, in task units."""

    sd: float = Field(
        description="Standard deviation; with a calibration, that of a normal distribution with the same interval."
    )
    low: float
    high: float


class Uncertainty(Strict):
    """Intervals that hold the true value with the stated probability."""

    coverage: float = Field(description="Share of true values that the intervals are meant to hold.")
    calibrated: bool = Field(
        description="Whether the intervals are conformal, fitted on validation rows, or only the distribution's own."
    )
    scores: dict[str, ScoreUncertainty]


class InterpreterResponse(Strict):
    """An answer."""

    parameters: dict[str, int | float] = Field(examples=[{"energy": 20, "warmth": 80}])
    uncertainty: Uncertainty | None = Field(description="Null where the model's engine gives only text.")
    model_id: str
    latency_ms: float = Field(description="From the arrival of the request to its answer, the wait included.")


class BatchResponse(Strict):
    """Answers in the order of the requests."""

    results: list[InterpreterResponse]
    latency_ms: float


class ModelInfo(Strict):
    """A registered model."""

    id: str
    kind: str
    keys: list[str]
    low: int
    high: int
    decimals: int


class ModelsResponse(Strict):
    """The registered models."""

    default: str
    models: list[ModelInfo]


class ErrorDetail(Strict):
    """What is wrong, and what to do."""

    message: str
    type: str


class ErrorResponse(Strict):
    """The body of every refusal."""

    error: ErrorDetail


class StatusResponse(Strict):
    """Of `/health` and `/ready`."""

    status: str


# ------------------------------------------------------------------------------- what clients of OpenAI's API exchange


class Lenient(BaseModel):
    """A part of a body of OpenAI's API, of which we read what we need."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class TextPart(Lenient):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Lenient):
    """A message. The last one of the user is the request; the instruction is the model's own."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=64)]

    @property
    def text(self) -> str:
        """Its text in one piece."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Lenient):
    """What a stream has besides its text."""

    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """Body of `POST /v1/chat/completions`. Parameters that it does not list are looked at in `chat_parameters`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: ModelName
    messages: list[ChatMessage] = Field(min_length=1, max_length=64)
    stream: bool | None = False
    stream_options: StreamOptions | None = None


class AnswerMessage(Strict):
    """The answer as a message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(Strict):
    """The one choice there is."""

    index: Literal[0] = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: Literal["stop"] = "stop"


class Usage(Strict):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatResponse(Strict):
    """An answer as a chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class ListedModel(Strict):
    """A model as `/v1/models` lists it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["ppe-lora"] = "ppe-lora"


class ModelList(Strict):
    """Body of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ListedModel]


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": words}
    for status, words in {
        400: "The body is not JSON, or asks for what this server does not do.",
        401: "The API key is missing or wrong.",
        404: "There is no such model.",
        408: "The request was sent too slowly.",
        413: "The body is too large.",
        415: "The body is compressed.",
        422: "The body is not as described, or the request does not fit the model.",
        429: "Too many requests of this client; `Retry-After` says when to come back.",
        502: "The model's engine answered with something else than an answer, or not at all.",
        503: "Too many requests wait, or the server is shutting down; `Retry-After` says when to come back.",
        504: "No answer in time.",
    }.items()
}
