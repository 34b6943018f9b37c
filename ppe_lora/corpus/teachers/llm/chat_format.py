"""The chat-completions format that Mistral, OpenAI, vLLM, llama.cpp and Ollama share: what is sent, what comes back."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from ppe_lora.corpus.teachers.llm.exchange import Question, Reply, Unavailable
from ppe_lora.redaction import mask_sent


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

    Where the content comes in chunks, those of text count. A server that takes the answer for reasoning leaves the
    content empty: then the reasoning is the text; between tags of thought where `max_tokens` cut it off, since it has
    no answer then. Tokens are 0 where the server does not count them. Secrets that the server echoes are masked.

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
    text, finish_reason = choice.message.answer(choice.finish_reason or "")
    return Reply(key, mask_sent(text), finish_reason, usage.prompt_tokens or 0, usage.completion_tokens or 0)


def shortened(text: str) -> str:
    """A text on one line of at most 300 characters, for messages."""
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:297]}..."


class _Message(BaseModel):
    content: str | list[str | dict[str, Any]] | dict[str, Any] | None = None
    reasoning_content: str | None = None
    reasoning: Any = None
    refusal: str | None = None

    def answer(self, finish_reason: str) -> tuple[str, str]:
        """The text, and how it finished."""
        if text := self._text():
            return text, finish_reason
        if self.refusal:
            return self.refusal, "refusal"
        chunks = self.content if isinstance(self.content, list) else []
        thoughts = "".join(_thoughts(chunk) for chunk in chunks if isinstance(chunk, dict))
        thoughts = thoughts or self.reasoning_content or (self.reasoning if isinstance(self.reasoning, str) else "")
        if thoughts and finish_reason == "length":
            return f"<think>{thoughts}", finish_reason
        return thoughts, finish_reason

    def _text(self) -> str:
        if isinstance(self.content, dict):  # a server that has read the JSON itself
            return json.dumps(self.content, ensure_ascii=False)
        if isinstance(self.content, list):
            return "".join(chunk if isinstance(chunk, str) else _said(chunk) for chunk in self.content)
        return self.content or ""


def _said(chunk: Mapping[str, Any]) -> str:
    text = chunk.get("text")
    return text if isinstance(text, str) and chunk.get("type", "text") in ("text", "output_text") else ""


def _thoughts(chunk: Mapping[str, Any]) -> str:
    """The text of a chunk of thoughts: Mistral's are lists of chunks of text."""
    inside = chunk.get("thinking") or chunk.get("reasoning")
    if isinstance(inside, list):
        return "".join(_said(one) for one in inside if isinstance(one, dict))
    return inside if isinstance(inside, str) else ""


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None
