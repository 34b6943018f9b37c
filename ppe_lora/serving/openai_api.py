"""The part of OpenAI's API that its clients need to talk to a model that answers with JSON only."""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from ppe_lora.cells import request_of
from ppe_lora.serving.backend import ApiError, Ask
from ppe_lora.serving.bodies import StrictRoute
from ppe_lora.serving.chat_parameters import check_parameters
from ppe_lora.serving.schemas import (
    MAX_REQUEST_CHARS,
    REFUSALS,
    AnswerMessage,
    ChatRequest,
    ChatResponse,
    Choice,
    ListedModel,
    ModelList,
    Usage,
)
from ppe_lora.serving.service import Service, language_of


def openai_routes(service: Service) -> APIRouter:
    """`/v1/models` and `/v1/chat/completions`."""
    routes = APIRouter(prefix="/v1", tags=["openai"], responses=REFUSALS, route_class=StrictRoute)
    started = int(time.time())

    @routes.get("/models")
    async def models() -> ModelList:
        """The registered models."""
        return ModelList(data=[ListedModel(id=name, created=started) for name in service.models])

    @routes.get("/models/{model:path}")
    async def model(model: str) -> ListedModel:
        """One registered model."""
        service.backend(model)
        return ListedModel(id=model, created=started)

    @routes.post(
        "/chat/completions",
        response_model=ChatResponse,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def complete(body: ChatRequest, request: Request) -> Response:
        """Answer the last user message with compact JSON.

        The instruction is the model's own: other messages are not read. The answer is the model's one answer to the
        request, whatever the temperature, seed, penalties or token limit. Parameters that ask for another kind of
        answer (n, tools, logprobs, another response_format, stop) are refused.
        """
        check_parameters(body.model_extra or {}, service.backend(body.model).task)
        replies, model, _ = await service.answer(body.model, [_ask(body, service)], request.scope["arrived"])
        reply = replies[0]
        response = ChatResponse(
            id=f"chatcmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=model,
            choices=[Choice(message=AnswerMessage(content=service.models[model].task.render(reply.parameters)))],
            usage=Usage(
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.answer_tokens,
                total_tokens=reply.prompt_tokens + reply.answer_tokens,
            ),
        )
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage is True
            return StreamingResponse(_events(response, with_usage), media_type="text/event-stream")
        return Response(response.model_dump_json(), media_type="application/json")

    return routes


def _ask(body: ChatRequest, service: Service) -> Ask:
    message = next((message for message in reversed(body.messages) if message.role == "user"), None)
    if message is None:
        raise _unfit("messages: expected one of the user; got none")
    text = message.text
    if len(text) > MAX_REQUEST_CHARS:
        raise _unfit(f"messages: expected at most {MAX_REQUEST_CHARS} characters of the user; got {len(text):,}")
    language = language_of(text)
    request, context = service.backend(body.model).task.read_user_text(text, language)
    try:
        return Ask(request_of(request), language, context)
    except ValueError as error:
        raise _unfit(f"messages: {error}") from error


def _unfit(said: str) -> ApiError:
    return ApiError(422, "invalid_request_error", said)


def _events(response: ChatResponse, with_usage: bool) -> Iterator[str]:
    """The answer as a stream: it is there at once, so it is one piece."""
    content = response.choices[0].message.content
    common = {"id": response.id, "object": "chat.completion.chunk", "created": response.created}
    common["model"] = response.model
    for delta, finish in (({"role": "assistant", "content": ""}, None), ({"content": content}, None), ({}, "stop")):
        yield _event(common | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
    if with_usage:
        yield _event(common | {"choices": [], "usage": response.usage.model_dump()})
    yield "data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"
