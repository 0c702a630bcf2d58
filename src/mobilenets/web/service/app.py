"""The addresses of a server: images to `/predict`, how it is doing, what it offers, and pages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mobilenets.data.images import BadImageError
from mobilenets.deploy.predictor import Engine
from mobilenets.training.run import Run
from mobilenets.web.server import Page
from mobilenets.web.service import docs_page
from mobilenets.web.service.batching import Answer, Batcher
from mobilenets.web.service.gate import JSON, UNANSWERED, Gate, Log, Who
from mobilenets.web.service.limits import Limits
from mobilenets.web.service.metrics import Metrics
from mobilenets.web.service.refusal import GoneError, RefusalError, problem
from mobilenets.web.service.uploads import FIELD, FORM, RAW, Desk

# Of what is written at once.
_PIECE = 262_144


class Problem(BaseModel):
    """Any answer that is none."""

    error: str = Field(description="One sentence.")


class ImageAnswer(BaseModel):
    """What the run says of an image, as `mobilenets predict --json` does; which fields, depends on what it has learnt."""

    model_config = ConfigDict(extra="allow")
    image: str | None = Field(description="The file's name, where it was sent with one.")


class UnreadableImage(BaseModel):
    """One of several images that can't be read."""

    model_config = ConfigDict(extra="forbid")
    image: str | None
    error: str = Field(description="One sentence.")


class Answers(BaseModel):
    """One row an image, in order."""

    runtime: str = Field(description="What the network runs in.")
    model: str = Field(description="Such as 1.0-224.")
    task: str = Field(description="What the run has learnt.")
    predictions: list[UnreadableImage | ImageAnswer]


class Health(BaseModel):
    """The server answers."""

    status: str
    model: str
    task: str
    runtime: str
    version: str = Field(description="Of mobilenets.")
    waiting: int = Field(description="Images that are read or wait for the network.")


Score = Annotated[
    float | None,
    Query(ge=0.01, le=1, description="The least a detector tells with; 0.5. For detectors alone."),
]


def make_app(
    run: Run,
    engine: Engine,
    limits: Limits | None = None,
    pages: Mapping[str, Page] | None = None,
    *,
    hosts: Collection[str] | None = None,
    origins: Sequence[str] = (),
    metrics: Metrics | None = None,
    log: Log | None = None,
) -> FastAPI:
    """An application that answers for a run.

    Args:
        engine: `find_engine` gives it.
        pages: by their path; without one at `/`, that leads to the API's page.
        hosts: names that the server is called by; None takes any.
        origins: of pages from elsewhere that may ask, such as `https://example.org`.
        log: takes a line for each request.

    Raises:
        ValueError: a page has an address of the API's.
    """
    limits = limits or Limits()
    metrics = metrics or Metrics()
    batcher = Batcher(run, engine, limits, metrics)
    desk = Desk(limits)
    about = {"model": str(run.spec), "task": run.task.name, "runtime": engine.runtime}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        await batcher.start()
        yield
        await batcher.stop()

    app = FastAPI(
        title=f"mobilenets {about['model']}",
        version=version("mobilenets"),
        description=f"What a {run.task.name} run says of images.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        responses={422: {"model": Problem, "description": "The request is not understood."}},
    )

    @app.post(
        "/predict",
        tags=["images"],
        response_model=Answers,
        responses=_problems(limits),
        openapi_extra={"requestBody": _body(limits)},
    )
    async def predict(request: Request, score: Score = None) -> Response:
        """Say what is in one image or several."""
        if score is not None and run.task.name != "detection":
            raise RefusalError(
                422, f"score is for detectors, and this run has learnt {run.task.name}"
            )
        async with desk.uploads(request) as uploads:
            answers = await _unless_gone(request, batcher.answers(uploads, score))
            names = [upload.name for upload in uploads]
        if len(answers) == 1 and isinstance(answers[0], BadImageError):
            raise RefusalError(400, str(answers[0]))
        rows = [_row(name, answer) for name, answer in zip(names, answers, strict=True)]
        return _json({**about, "predictions": rows})

    @app.get("/health", tags=["server"], response_model=Health)
    async def health() -> Response:
        """Whether it answers, and for what."""
        return _json(
            {
                "status": "ok",
                **about,
                "version": version("mobilenets"),
                "waiting": batcher.waiting,
            }
        )

    @app.get(
        "/metrics",
        name="metrics",
        tags=["server"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
    )
    async def counted() -> Response:
        """What it has done, for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    own = {"/predict", "/health", "/metrics", "/openapi.json", *(docs := docs_page.docs_pages())}
    given = dict(pages or {})
    if taken := own & given.keys():
        raise ValueError(f"a page can't be at {', '.join(sorted(taken))}: the API is there")
    if "/" not in given:
        app.add_api_route("/", _to_docs, include_in_schema=False)
    for path, page in docs.items():
        app.router.routes.append(
            Route(path, _Given(page, {"Content-Security-Policy": docs_page.POLICY}))
        )
    for path, page in given.items():
        app.router.routes.append(Route(path, _Given(page, {})))
    _answer_errors(app)
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(
        Gate,
        who=Who(hosts, origins),
        metrics=metrics,
        paths={"/", *own, *given},
        log=log,
    )
    return app


async def _unless_gone(request: Request, answers: Awaitable[list[Answer]]) -> list[Answer]:
    """Answers, as long as someone waits for them.

    Raises:
        GoneError: nobody does.
    """
    asked = asyncio.ensure_future(answers)
    # All of the body is there: what comes next is its sender's end.
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise GoneError
        return asked.result()
    finally:
        gone.cancel()
        asked.cancel()


def _row(name: str | None, answer: Answer) -> dict[str, Any]:
    if isinstance(answer, BadImageError):
        return {"image": name, "error": str(answer)}
    return {"image": name, **answer}


def _json(value: Any) -> Response:
    return Response(
        json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"), media_type=JSON
    )


async def _to_docs() -> Response:
    return Response(status_code=307, headers={"Location": "docs"})


class _Given:
    """A page as it is, in pieces: a slow reader has no copy of the rest waiting for it."""

    def __init__(self, page: Page, headers: Mapping[str, str]) -> None:
        self._page = page
        self._headers = [
            (b"content-type", page.kind.encode("latin-1")),
            (b"content-length", str(len(page.content)).encode()),
            *((name.lower().encode(), value.encode()) for name, value in headers.items()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        content = memoryview(self._page.content)
        for start in range(0, len(content), _PIECE) if scope["method"] == "GET" else ():
            piece = bytes(content[start : start + _PIECE])
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _body(limits: Limits) -> dict[str, Any]:
    """How images are sent, in OpenAPI's words."""
    file = {"type": "string", "format": "binary"}
    form = {
        "type": "object",
        "required": [FIELD],
        "properties": {FIELD: {"type": "array", "items": file, "maxItems": limits.images}},
    }
    return {
        "required": True,
        "content": {FORM: {"schema": form}, "image/*": {"schema": file}, RAW: {"schema": file}},
    }


def _problems(limits: Limits) -> dict[int | str, dict[str, Any]]:
    megabytes = limits.body_bytes / 1e6
    told = {
        400: "The one image can't be read, or the form is malformed.",
        403: "A page from elsewhere asks.",
        408: f"The request was not sent within {limits.seconds:g} seconds.",
        413: f"More than {megabytes:g} MB or {limits.images} images.",
        415: "The body is of another kind.",
        421: "The request is for another host.",
        431: "The headers are too long.",
        500: "The server failed.",
        503: "Too much is asked for just now: try again.",
    }
    return {status: {"model": Problem, "description": words} for status, words in told.items()}


def _answer_errors(app: FastAPI) -> None:
    """Each error as one sentence of JSON."""

    @app.exception_handler(RefusalError)
    async def refuse(request: Request, error: RefusalError) -> Response:
        del request
        return _problem(error.status, error.sentence, error.headers)

    @app.exception_handler(GoneError)
    async def let_go(request: Request, error: GoneError) -> Response:
        del request, error
        return _problem(UNANSWERED, "the client went away")

    @app.exception_handler(HTTPException)
    async def no_such(request: Request, error: HTTPException) -> Response:
        told = {
            404: f"there is nothing at {request.url.path[:200]}: /docs tells what there is",
            405: f"{request.method} is not for {request.url.path[:200]}",
        }
        return _problem(
            error.status_code, told.get(error.status_code, str(error.detail)), error.headers
        )

    @app.exception_handler(RequestValidationError)
    async def not_understood(request: Request, error: RequestValidationError) -> Response:
        del request
        wrong = [f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()]
        return _problem(422, "; ".join(wrong))


def _problem(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(problem(sentence), status, dict(headers or {}), media_type=JSON)
