"""The part of OpenAI's API that its clients need to talk to a model that answers with JSON only."""

import json
import time
import uuid
from collections.abc import Iterator

from fastapi import APIRouter
from starlette.responses import Response, StreamingResponse

from ppe_lora.serving.backend import ApiError, Ask
from ppe_lora.serving.schemas import (
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
    routes = APIRouter(prefix="/v1", tags=["openai"], responses=REFUSALS)
    started = int(time.time())

    @routes.get("/models")
    async def models() -> ModelList:
        """The registered models."""
        return ModelList(data=[ListedModel(id=name, created=started) for name in service.models])

    @routes.post(
        "/chat/completions",
        response_model=ChatResponse,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def complete(body: ChatRequest) -> Response:
        """Answer the last user message with compact JSON.

        The instruction is the model's own: other messages are not read, and sampling settings change nothing.
        """
        replies, model, _ = await service.answer(body.model, [_ask(body, service)])
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
            return StreamingResponse(_events(response), media_type="text/event-stream")
        return Response(response.model_dump_json(), media_type="application/json")

    return routes


def _ask(body: ChatRequest, service: Service) -> Ask:
    said = [message.text for message in body.messages if message.role == "user"]
    if not said or not said[-1].strip():
        raise ApiError(422, "invalid_request_error", "messages: expected one of the user that says something")
    text = said[-1]
    language = language_of(text)
    request, context = service.backend(body.model).task.read_user_text(text, language)
    return Ask(request, language, context)


def _events(response: ChatResponse) -> Iterator[str]:
    """The answer as a stream: it is there at once, so it is one piece."""
    content = response.choices[0].message.content
    for delta, finish in (({"role": "assistant", "content": ""}, None), ({"content": content}, None), ({}, "stop")):
        chunk = {
            "id": response.id,
            "object": "chat.completion.chunk",
            "created": response.created,
            "model": response.model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"
