"""The chat-completions format that Mistral, OpenAI, vLLM, llama.cpp and Ollama share: what is sent, what comes back."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from ppe_lora.corpus.teachers.llm.exchange import Question, Reply, Unavailable


def openai_body(question: Question) -> dict[str, Any]:
    """The JSON body of `/v1/chat/completions` as OpenAI defines it; a schema is asked for by `response_format`."""
    body = {
        "model": question.model,
        "messages": [dict(message) for message in question.messages],
        **question.sampling,
    }
    if question.answer_schema is not None:
        schema = {"name": "answer", "schema": dict(question.answer_schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def mistral_body(question: Question) -> dict[str, Any]:
    """The same body as Mistral defines it: there the seed is called `random_seed`."""
    return {("random_seed" if name == "seed" else name): value for name, value in openai_body(question).items()}


def read_reply(where: str, key: str, body: str | Mapping[str, Any]) -> Reply:
    """The reply in a response body.

    A message without text (a model that reasoned until `max_tokens`) has the text "". Where the content comes in
    chunks, those of the type `text` count. Tokens are 0 where the server does not count them.

    Args:
        where: Who sent it, for the message.
        key: The question's.
        body: JSON text, or what it holds.

    Raises:
        Unavailable: The body is cut off, is not JSON, or is no chat completion.
    """
    try:
        completion = (
            _Completion.model_validate_json(body) if isinstance(body, str) else _Completion.model_validate(body)
        )
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(part) for part in problem["loc"]) or "body"
        text = body if isinstance(body, str) else str(body)
        raise Unavailable(
            f"{where}: expected a chat completion; got one with a fault in {at} ({problem['msg']}): {shortened(text)}"
        ) from error
    choice, usage = completion.choices[0], completion.usage or _Usage()
    return Reply(
        key, choice.message.text(), choice.finish_reason or "", usage.prompt_tokens or 0, usage.completion_tokens or 0
    )


def shortened(text: str) -> str:
    """A text on one line of at most 300 characters, for messages."""
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:297]}..."


class _Message(BaseModel):
    content: str | list[dict[str, Any]] | None = None

    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(str(chunk.get("text", "")) for chunk in self.content if chunk.get("type") == "text")
        return self.content or ""


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None
