"""The API: one endpoint for the game, one for batches, the part of OpenAI's that clients need, and the page."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse

from ppe_lora import __version__
from ppe_lora.cells import shorten
from ppe_lora.evaluation.calibration import COVERAGE
from ppe_lora.serving.aside import aside
from ppe_lora.serving.backend import ApiError, Ask, Reply
from ppe_lora.serving.bodies import StrictRoute
from ppe_lora.serving.failures import log_failure
from ppe_lora.serving.openai_api import openai_routes
from ppe_lora.serving.page import load_page
from ppe_lora.serving.schemas import (
    REFUSALS,
    BatchRequest,
    BatchResponse,
    InterpreterRequest,
    InterpreterResponse,
    ModelInfo,
    ModelsResponse,
    OneRequest,
    ScoreUncertainty,
    StatusResponse,
    Uncertainty,
)
from ppe_lora.serving.service import Service, language_of


class AsciiJSONResponse(JSONResponse):
    """Escapes what is not ASCII: a refusal may quote text that no encoding can express, such as half a surrogate."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, ensure_ascii=True).encode("ascii")


def create_api(service: Service) -> FastAPI:
    """The API of a service, without the gate in front of it."""

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    api = FastAPI(
        title="ppe-lora",
        summary="Prompt-to-parameter estimation: a request in words in, numbers out.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # both load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    api.include_router(interpreter_routes(service))
    api.include_router(openai_routes(service))
    api.include_router(operations_routes(service))
    api.add_exception_handler(ApiError, _refuse)
    api.add_exception_handler(RequestValidationError, _refuse_body)
    api.add_exception_handler(HTTPException, _refuse_path)
    api.add_exception_handler(Exception, _fail)
    return api


def interpreter_routes(service: Service) -> APIRouter:
    """Requests in, parameters out."""
    routes = APIRouter(prefix="/api", tags=["interpreter"], responses=REFUSALS, route_class=StrictRoute)

    @routes.post("/interpreter")
    async def interpret(body: InterpreterRequest, request: Request) -> InterpreterResponse:
        """Answer one request with a number per key."""
        replies, model, latency_ms = await service.answer(body.model, [_ask(body)], request.scope["arrived"])
        return _response(replies[0], model, latency_ms)

    @routes.post("/interpreter/batch")
    async def interpret_batch(body: BatchRequest, request: Request) -> BatchResponse:
        """Answer several requests, decoded together. All are answered, or none."""
        asks = await aside(lambda: list(map(_ask, body.requests)))
        replies, model, latency_ms = await service.answer(body.model, asks, request.scope["arrived"])
        return BatchResponse(results=[_response(reply, model, latency_ms) for reply in replies], latency_ms=latency_ms)

    @routes.get("/models")
    async def models() -> ModelsResponse:
        """The registered models, and what their answers look like."""
        listed = [
            ModelInfo(
                id=name,
                kind=backend.kind,
                keys=list(backend.task.keys),
                low=backend.task.low,
                high=backend.task.high,
                decimals=backend.task.decimals,
            )
            for name, backend in service.models.items()
        ]
        return ModelsResponse(default=service.default, models=listed)

    return routes


def operations_routes(service: Service) -> APIRouter:
    """The page, and what a person or a scheduler needs to run the server."""
    routes = APIRouter(tags=["operations"])
    page = load_page()

    @routes.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page.html, headers={"Content-Security-Policy": page.policy})

    @routes.get("/health")
    async def health() -> StatusResponse:
        """Whether the process runs."""
        return StatusResponse(status="ok")

    @routes.get("/ready", responses={503: REFUSALS[503]})
    async def ready(request: Request) -> StatusResponse:
        """Whether requests will be answered: every model works, and the server is not shutting down."""
        if request.scope.get("draining"):
            raise ApiError(503, "shutting_down", "the server is shutting down", retry_after_s=5)
        if stopped := service.problems():
            raise ApiError(503, "model_stopped", f"stopped: {', '.join(stopped)}; restart the server")
        return StatusResponse(status="ready")

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return routes


def _ask(one: OneRequest) -> Ask:
    return Ask(one.request, one.language or language_of(one.request), one.context)


def _response(reply: Reply, model: str, latency_ms: float) -> InterpreterResponse:
    uncertainty = None
    if reply.spread is not None:
        scores = {key: ScoreUncertainty(**spread._asdict()) for key, spread in reply.spread.items()}
        uncertainty = Uncertainty(coverage=COVERAGE, calibrated=reply.calibrated, scores=scores)
    return InterpreterResponse(
        parameters=reply.parameters, uncertainty=uncertainty, model_id=model, latency_ms=latency_ms
    )


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return AsciiJSONResponse(error.body, error.status, error.headers)


async def _refuse_body(request: Request, error: Exception) -> Response:
    """What is wrong with a body, without repeating it."""
    assert isinstance(error, RequestValidationError)
    said = []
    for problem in error.errors()[:5]:
        place = ".".join(str(step) for step in problem["loc"] if step != "body")
        said.append(f"{shorten(place) or 'body'}: {problem['msg'].removeprefix('Value error, ')}")
    refusal = ApiError(422, "invalid_request_error", "; ".join(said))
    return AsciiJSONResponse(refusal.body, refusal.status)


async def _refuse_path(request: Request, error: Exception) -> Response:
    """No such path, another method, or a body that is no text."""
    assert isinstance(error, HTTPException)
    refusal = ApiError(error.status_code, "invalid_request_error", str(error.detail))
    return AsciiJSONResponse(refusal.body, error.status_code, error.headers)


async def _fail(request: Request, error: Exception) -> Response:
    """A bug: logged here; the client is told where to look."""
    failure = log_failure(f"{request.method} {request.scope['path']!r}", error)
    return AsciiJSONResponse(
        ApiError(500, "internal_error", f"the server failed; its log says why under {failure}").body, 500
    )
