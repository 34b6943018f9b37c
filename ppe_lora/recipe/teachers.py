"""Who phrases the rows (recipe section `data.source.teacher`): the phrase book, or a language model somewhere."""

from typing import Annotated, Literal, Self

from pydantic import Field, Tag, field_validator, model_validator

from ppe_lora.redaction import address_problem, variable_problem
from ppe_lora.section import Conflict, Count, Section, Weight, by_kind

PerMinute = Annotated[float, Field(gt=0)]


class ScriptedTeacher(Section):
    """An offline teacher: phrases a vector from a built-in phrase book, in Japanese and English."""

    kind: Literal["scripted"] = "scripted"
    noise: Weight = 5.0
    """Standard deviation, in task units, of the teacher's misreading of each score before it phrases it."""


class Limits(Section):
    """What a server allows, or what it should carry."""

    requests_per_minute: PerMinute | None = None
    """Per server; null is no limit known. A 429 slows down in either case."""
    tokens_per_minute: PerMinute | None = None
    """Prompt and completion together, per server."""
    concurrency: Count = 32
    """Requests under way at once, over all servers: more keep a server of one's own busy, up to what it batches."""


class Prices(Section):
    """Money per million tokens, in the currency of the bill."""

    prompt: Weight = 0.0
    completion: Weight = 0.0


class Budget(Section):
    """The most that one data set's answers may cost, all runs and shards together; null is no limit."""

    requests: int | None = None
    tokens: int | None = None
    """Prompt and completion together."""
    money: float | None = None
    """In the currency of `prices`."""

    @field_validator("requests", "tokens", "money")
    @classmethod
    def _above_zero(cls, limit: float | None) -> float | None:
        if limit is not None and limit <= 0:
            raise ValueError(f"expected more than 0; got {limit:g}; leave it out for no limit, or see the cost without "
                             "asking by `ppe-lora data build RECIPE --dry-run`")  # fmt: skip
        return limit


class _LlmTeacher(Section):
    """What the teachers that are language models have in common. The prompt is the package's own."""

    model: str = Field(min_length=1)
    """Its name on the server."""
    temperature: float = Field(default=1.0, ge=0, le=1.5)
    """Higher: more varied texts, more of them off the mark."""
    max_tokens: Count = 400
    """Longest answer. A long request takes about 120 tokens in English and 200 in Japanese."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Longest time of one attempt."""
    limits: Limits = Limits()
    prices: Prices = Prices()
    budget: Budget = Budget()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.budget.money is not None and not self.prices.prompt + self.prices.completion > 0:
            remedy = "set prices.prompt and prices.completion, or limit budget.tokens instead"
            raise Conflict(f"budget.money needs prices: {remedy}", "budget.money", "prices.prompt", "prices.completion")
        return self


class MistralTeacher(_LlmTeacher):
    """The hosted Mistral API. The key is read from the environment variable MISTRAL_API_KEY."""

    kind: Literal["mistral"]
    mode: Literal["realtime", "batch"] = "realtime"
    """`batch` is half the price (set `prices` accordingly) and outside the rate limits; answers take minutes to a
    day. Of many questions two dozen are asked in real time first, to see that the answers are of use."""


class Server(Section):
    """One server among several that serve the same model."""

    url: str
    """Its address, as a rule with `/v1`."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the requests it gets, relative to the others."""

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        if problem := address_problem(url):
            raise ValueError(problem)
        return url


class OpenAICompatibleTeacher(_LlmTeacher):
    """Servers that speak the OpenAI protocol: vLLM, llama.cpp, Ollama, hosted ones."""

    kind: Literal["openai_compatible"]
    endpoints: tuple[Server, ...]
    """When one dies, the others take over its requests."""
    api_key_env: str | None = None
    """Environment variable that holds the API key; null for servers that want none."""

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, name: str | None) -> str | None:
        if name is not None and (problem := variable_problem(name)):
            raise ValueError(problem)
        return name

    @field_validator("endpoints")
    @classmethod
    def _different(cls, endpoints: tuple[Server, ...]) -> tuple[Server, ...]:
        urls = [endpoint.url for endpoint in endpoints]
        if not urls or len(set(urls)) < len(urls):
            raise ValueError(f"expected one or more servers of different url; got {', '.join(urls) or 'none'}")
        return endpoints


LlmTeacher = MistralTeacher | OpenAICompatibleTeacher
Teacher = Annotated[
    Annotated[ScriptedTeacher, Tag("scripted")]
    | Annotated[MistralTeacher, Tag("mistral")]
    | Annotated[OpenAICompatibleTeacher, Tag("openai_compatible")],
    by_kind(ScriptedTeacher, MistralTeacher, OpenAICompatibleTeacher),
]
"""The phrase book where no kind is named."""

NOT_CONTENT = {"timeout_s", "limits", "prices", "budget", "mode", "endpoints", "api_key_env"}
"""Keys of a teacher that decide how its answers are had, not what they are."""
