"""Endpoints against loopback servers through the real clients: what is sent, and what each failure becomes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from email.utils import formatdate
from typing import Any

import pytest

from ppe_lora.corpus.teachers.llm.chat_format import read_reply
from ppe_lora.corpus.teachers.llm.exchange import (
    Endpoint,
    Question,
    RateLimit,
    Refused,
    Reply,
    Throttled,
    Unavailable,
)
from ppe_lora.corpus.teachers.llm.http_failures import retry_after_s
from ppe_lora.corpus.teachers.llm.mistral import MistralEndpoint
from ppe_lora.corpus.teachers.llm.openai_compatible import OpenAICompatibleEndpoint
from tests.teacher_servers import (
    CHAT,
    KEY,
    ChatServer,
    Delay,
    Fault,
    MistralServer,
    OpenAIServer,
    Reset,
    Status,
    Truncated,
    always,
    free_port,
    script,
    serve,
)

SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
    "additionalProperties": False,
}
RESPONSE_FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
KINDS = ("mistral", "openai")


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRAL_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-company")


def ask_for(text: str = "雨の夜", model: str = "teacher-1", schema: Any = None, **sampling: Any) -> Question:
    return Question(model, ({"role": "system", "content": "Say it."}, {"role": "user", "content": text}),
                    sampling, schema)  # fmt: skip


def make(kind: str, url: str, timeout_s: float = 5.0) -> Endpoint:
    if kind == "mistral":
        return MistralEndpoint(server_url=url, timeout_s=timeout_s)
    return OpenAICompatibleEndpoint(f"{url}/v1", timeout_s=timeout_s)


def server_of(kind: str, **options: Any) -> ChatServer:
    return MistralServer(**options) if kind == "mistral" else OpenAIServer(**options)


def with_endpoint(endpoint: Endpoint, use: Callable[[Endpoint], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        try:
            return await use(endpoint)
        finally:
            await endpoint.close()

    return asyncio.run(run())


def ask_once(kind: str, server: ChatServer, question: Question | None = None, timeout_s: float = 5.0) -> Reply:
    with serve(server) as url:
        reply: Reply = with_endpoint(make(kind, url, timeout_s), lambda one: one.ask(question or ask_for()))
        return reply


def failing(kind: str, fault: Fault, timeout_s: float = 5.0) -> tuple[Exception, ChatServer]:
    server = server_of(kind, faults=always(fault))
    with pytest.raises((Throttled, Unavailable, Refused)) as caught:
        ask_once(kind, server, timeout_s=timeout_s)
    return caught.value, server


@pytest.mark.parametrize("kind", KINDS)
def test_question_arrives_whole_and_reply_comes_back(kind: str) -> None:
    """A sampling option or schema that gets lost on the way trains the student on other text than asked for."""
    server = server_of(kind)
    question = ask_for(schema=SCHEMA, temperature=0.7, top_p=0.9, max_tokens=64, seed=3)
    reply = ask_once(kind, server, question)
    assert reply == Reply(question.key, '{"text": "雨の夜"}', "stop", 10, 15)
    (body,) = server.bodies
    body.pop("stream", None)  # the Mistral client says `false`
    assert body == {
        "model": "teacher-1",
        "messages": [{"role": "system", "content": "Say it."}, {"role": "user", "content": "雨の夜"}],
        "temperature": 0.7, "top_p": 0.9, "max_tokens": 64, "random_seed" if kind == "mistral" else "seed": 3,
        "response_format": RESPONSE_FORMAT,
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_no_schema_no_response_format(kind: str) -> None:
    server = server_of(kind)
    assert ask_once(kind, server).text == "雨の夜"
    assert "response_format" not in server.bodies[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("headers", "seconds", "limit"),
    [
        ({"Retry-After": "2"}, 2.0, RateLimit()),
        ({"X-RateLimit-Reset": "1.5"}, 1.5, RateLimit()),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360.0, RateLimit()),
        (
            {"x-ratelimit-limit-req-minute": "720", "x-ratelimit-remaining-req-minute": "0",
             "x-ratelimit-limit-tokens-minute": "5000000", "x-ratelimit-limit-tokens-month": "9"},
            None,
            RateLimit(720, 5_000_000),
        ),
        # Of a day or a minute? Nor can nothing be a limit.
        ({"x-ratelimit-limit-requests": "200", "X-RateLimit-Limit-Req-Minute": "0"}, None, RateLimit()),
        ({}, None, RateLimit()),
    ],
)  # fmt: skip
def test_429_is_throttled_and_says_how_long(
    kind: str, headers: dict[str, str], seconds: float | None, limit: RateLimit
) -> None:
    """A limit taken for a failure burns the attempts; a lost header makes the client knock too early."""
    error, server = failing(kind, Status(429, headers))
    assert isinstance(error, Throttled)
    assert (error.retry_after_s, error.limit) == (seconds, limit)
    assert "HTTP 429 (status 429)" in str(error)
    assert server.received[CHAT] == 1  # a client that retries by itself would hide the limit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Status(500), "HTTP 500 (status 500)"),
        (Status(503, body="overloaded"), "HTTP 503 (overloaded)"),
        (Status(408), "HTTP 408"),
        (Reset(), "the connection failed"),
        (Reset(late=True), "the connection failed"),
        (Truncated(promised=True), "the connection failed"),
        (Delay(3.0), "within 0.3 s; got none"),
    ],
    ids=repr,
)
def test_passing_failures_are_unavailable(kind: str, fault: Fault, says: str) -> None:
    """A failure that would pass and is taken for final loses a row; one the client retries itself is paid twice."""
    error, server = failing(kind, fault, timeout_s=0.3 if isinstance(fault, Delay) else 5.0)
    assert isinstance(error, Unavailable)
    assert says in str(error)
    assert server.received[CHAT] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_was_never_sent_is_free_for_sure(kind: str) -> None:
    """A budget that forgets an answer lost on its way is overdrawn; one that counts refused connections runs dry."""
    with pytest.raises(Unavailable) as refused:
        with_endpoint(make(kind, f"http://127.0.0.1:{free_port()}"), lambda one: one.ask(ask_for()))
    assert not refused.value.may_be_billed
    lost, _ = failing(kind, Reset(late=True))
    assert isinstance(lost, Unavailable)
    assert lost.may_be_billed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "fault",
    [
        Truncated(),
        Status(200, body={"object": "chat.completion", "choices": []}),
        Status(200, body=["no", "completion"]),
        Status(200, {"content-type": "text/html"}, body="<html>proxy</html>"),
    ],
    ids=repr,
)
def test_unreadable_answers_are_unavailable(kind: str, fault: Fault) -> None:
    """The openai client hands out half-filled objects without a word: an empty text would become a row."""
    error, _ = failing(kind, fault)
    assert isinstance(error, Unavailable)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("status", "says"), [(400, "check the prompt"), (402, "credit"), (403, "may do"), (404, "model's name"), (422, "")]
)
def test_final_failures_are_refused(kind: str, status: int, says: str) -> None:
    """A question that cannot succeed must not be asked eight times."""
    error, server = failing(kind, Status(status))
    assert isinstance(error, Refused)
    assert f"HTTP {status}" in str(error)
    assert says in str(error)
    assert server.received[CHAT] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_server_says_about_a_bad_request_is_shown(kind: str) -> None:
    with pytest.raises(Refused, match="temperature"):
        ask_once(kind, server_of(kind), ask_for(temperature=9))
    with pytest.raises(Refused, match="teacher-9"):
        ask_once(kind, server_of(kind), ask_for(model="teacher-9"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_endpoint_works_on_after_failures(kind: str) -> None:
    """A connection that died in the pool must not fail the next question."""
    server = server_of(kind, faults=script(Reset(), Status(429), Truncated(promised=True), Status(500)))

    async def ask_on(endpoint: Endpoint) -> list[str]:
        outcomes = []
        for number in range(6):
            try:
                outcomes.append((await endpoint.ask(ask_for(str(number)))).text)
            except (Throttled, Unavailable) as error:
                outcomes.append(type(error).__name__)
        return outcomes

    with serve(server) as url:
        outcomes = with_endpoint(make(kind, url), ask_on)
    assert outcomes == ["Unavailable", "Throttled", "Unavailable", "Unavailable", "4", "5"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_at_once(kind: str) -> None:
    """A pool smaller than the concurrency makes questions time out that were never sent."""
    server = server_of(kind, faults=always(Delay(0.2)))
    questions = [ask_for(f"text {number}") for number in range(200)]

    async def all_at_once(endpoint: Endpoint) -> list[Reply]:
        return list(await asyncio.gather(*(endpoint.ask(question) for question in questions)))

    with serve(server) as url:
        replies = with_endpoint(make(kind, url, timeout_s=120), all_at_once)
    assert [(reply.key, reply.text) for reply in replies] == [
        (question.key, question.messages[-1]["content"]) for question in questions
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_proxy_of_the_environment_is_used(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a company's proxy nothing else gets out; connections of our own making would just time out."""
    server = server_of(kind)
    with serve(server) as url:
        monkeypatch.setenv("HTTP_PROXY", url)
        with pytest.raises(Refused, match="404"):  # the loopback server is no proxy, but it saw the whole address
            with_endpoint(make(kind, "http://teacher.invalid"), lambda one: one.ask(ask_for()))
    assert set(server.received) == {f"http://teacher.invalid{CHAT}"}


def test_mistral_without_a_key_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRAL_API_KEY", " ")
    with pytest.raises(Refused) as caught:
        MistralEndpoint()
    assert str(caught.value) == (
        "MISTRAL_API_KEY: expected an API key in this environment variable; got none; "
        "make one at https://console.mistral.ai and `export MISTRAL_API_KEY=...`"
    )


def check(endpoint: Endpoint, model: str) -> str:
    """What `check` says; nothing where it is content."""
    try:
        with_endpoint(endpoint, lambda one: one.check(model))
    except (Refused, Unavailable) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_mistral_check(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(MistralServer(models=("mistral-large", "mistral-small"))) as url:
        assert check(make("mistral", url), "mistral-small") == ""
        assert check(make("mistral", url), "mistral-small-latest") == ""  # an alias
        assert check(make("mistral", url), "mistral-smal").startswith(
            "Refused: mistral: expected one of the 4 models of the account; got 'mistral-smal'; "
            "did you mean mistral-small or mistral-"
        )
        monkeypatch.setenv("MISTRAL_API_KEY", "wrong")
        assert check(make("mistral", url), "mistral-small") == (
            "Refused: mistral: expected an answer; got HTTP 401 (Unauthorized); check the API key in MISTRAL_API_KEY"
        )
    assert "the connection failed" in check(make("mistral", f"http://127.0.0.1:{free_port()}"), "mistral-small")


def test_openai_check_names_the_served_models() -> None:
    with serve(OpenAIServer(models=("a", "b"))) as url:
        assert check(make("openai", url), "b") == ""
        assert check(make("openai", url), "c") == (
            f"Refused: {url}/v1: expected a served model; got 'c'; it serves a, b; name one of these, or start the "
            "server with `vllm serve c` or `--served-model-name c`"
        )
        assert check(OpenAICompatibleEndpoint(url), "a").endswith("an address ends in /v1 as a rule")


def test_openai_check_of_nobody_says_how_to_start_vllm_within_a_second() -> None:
    port = free_port()
    started = time.monotonic()
    said = check(make("openai", f"http://127.0.0.1:{port}"), "some/model")
    assert time.monotonic() - started < 1
    assert said.startswith(f"Unavailable: http://127.0.0.1:{port}/v1: ")
    assert said.endswith(f"for example `vllm serve some/model --port {port}`, or mend the address")


def test_openai_key_from_the_named_variable_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client would send OPENAI_API_KEY to whatever server the recipe names."""
    with serve(OpenAIServer(key="the-right-one")) as url:
        assert check(OpenAICompatibleEndpoint(f"{url}/v1"), "teacher-1").endswith(
            "(Unauthorized); name the environment variable that holds its API key"
        )
        monkeypatch.setenv("SERVER_KEY", "the-right-one")
        assert check(OpenAICompatibleEndpoint(f"{url}/v1", key_variable="SERVER_KEY"), "teacher-1") == ""
    with serve(OpenAIServer(key="sk-of-another-company")) as url:
        assert "401" in check(OpenAICompatibleEndpoint(f"{url}/v1"), "teacher-1")
    monkeypatch.delenv("SERVER_KEY")
    with pytest.raises(Refused, match=r"^SERVER_KEY: expected the API key of http://x/v1"):
        OpenAICompatibleEndpoint("http://x/v1", key_variable="SERVER_KEY")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "3", "x-ratelimit-reset": "60"}, 3.0),
        ({"x-ratelimit-reset-requests": "88ms"}, 0.088),
        ({"x-ratelimit-reset-requests": "1h2m3.5s"}, 3723.5),
        # Only an exhausted bucket holds the next request back.
        ({"x-ratelimit-reset-month": "90000", "x-ratelimit-remaining-month": "5", "x-ratelimit-reset-minute": "7",
          "x-ratelimit-remaining-minute": "0"}, 7.0),
    ],
)  # fmt: skip
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == pytest.approx(seconds)


def test_retry_after_as_a_point_in_time() -> None:
    """An epoch read as seconds would wait for fifty years."""
    soon = time.time() + 30
    for value in (formatdate(soon, usegmt=True), str(soon), str(soon * 1000)):
        assert retry_after_s({"Retry-After": value}) == pytest.approx(30, abs=2)
    assert retry_after_s({"Retry-After": formatdate(soon - 90, usegmt=True)}) == 0.0


def chunks() -> Iterator[tuple[Any, str]]:
    yield [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"
    yield None, ""
    yield "plain", "plain"


@pytest.mark.parametrize(("content", "text"), chunks())
def test_content_in_chunks_and_none(content: Any, text: str) -> None:
    """A reasoning model's thoughts must not become training text."""
    body = {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "length"}]}
    assert read_reply("here", "k", body) == Reply("k", text, "length", 0, 0)
