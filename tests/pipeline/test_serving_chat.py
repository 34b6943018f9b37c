"""`/v1/chat/completions` and real clients: what they send by themselves is taken, what would be ignored is refused."""

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

from tests.runs import TASK
from tests.serving import Scripted, serving


class Both(BaseModel):
    a: int
    b: int


class Mood(BaseModel):
    mood: str


def test_openai_clients_parse_stream_and_find_models_by_name():
    """What clients send by themselves is taken: schemas of the answer, usage in a stream, names with a slash."""
    with serving({"org/m": Scripted()}) as running:
        client = OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        ask = {"model": "org/m", "messages": [{"role": "user", "content": "something soft"}]}
        parsed = client.chat.completions.parse(**ask, response_format=Both, seed=1, max_tokens=100)
        *chunks, usage = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
        assert client.models.retrieve("org/m").id == "org/m"
        with pytest.raises(NotFoundError, match="expected one of org/m; got 'org'"):
            client.models.retrieve("org")
        for wrong, words in (
            ({"n": 3}, "n: expected 1; got 3; ask again for a further answer"),
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, r"tools: expected \[\]; got "),
            ({"logprobs": True}, "logprobs: expected false; got true"),
        ):
            with pytest.raises(BadRequestError, match=words):
                client.chat.completions.create(**ask, **wrong)
        with pytest.raises(BadRequestError, match="got: mood, where answers have a, b"):
            client.chat.completions.parse(**ask, response_format=Mood)
    assert parsed.choices[0].message.parsed == Both(a=10, b=20)
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", '{"a":10,"b":20}', None]
    assert (usage.choices, usage.usage.total_tokens) == ([], 12)


CHATS = {
    "nobody's": ([{"role": "assistant", "content": "x"}], "messages: expected one of the user; got none"),
    "nothing to see": ([{"role": "user", "content": "\u200b"}], "messages: expected a text; got blanks only: "),
    "too long": (
        [{"role": "user", "content": "a" * 4001}],
        "messages: expected at most 4000 characters of the user",
    ),
    "too long in parts": (
        [{"role": "user", "content": [{"type": "text", "text": "a" * 3900}] * 2}],
        "messages: expected at most 4000 characters of the user; got 7,800",
    ),
    "a control character": ([{"role": "user", "content": "a\x00"}], "messages: a text holds the control character U+0"),
    "a picture": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
        "content.list[TextPart].0.type: Input should be 'text'",
    ),
}


@pytest.mark.parametrize("case", CHATS)
def test_a_chat_without_a_request_says_what_is_wrong(case):
    messages, words = CHATS[case]
    with serving({"m": Scripted()}) as running, running.client() as client:
        response = client.post("/v1/chat/completions", json={"model": "m", "messages": messages})
    assert response.status_code == 422
    assert words in response.json()["error"]["message"]


def test_chat_reads_the_context_that_a_training_prompt_carries():
    backend = Scripted()
    with serving({"m": backend}) as running:
        messages = TASK.messages("something soft", "en", {"weather": "rain"})
        OpenAI(base_url=f"{running.url}/v1", api_key="none").chat.completions.create(model="m", messages=messages)
    assert backend.asked == [("something soft", "en", {"weather": "rain"})]
