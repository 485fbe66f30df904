"""The FastAPI app of the reward server: its paths, and the state that requests share."""

import asyncio
import contextlib
import os
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel

from imagereward.checkpoints.registry import REGISTRY
from imagereward.config import whole_number
from imagereward.errors import InputError
from imagereward.pages import render
from imagereward.remote.protocol import checked_token
from imagereward.scoring.api import PairScorer
from imagereward.scoring.ranking import ranks_of
from imagereward.scoring.scorer import DEFAULT_BATCH, DEFAULT_BATCH_ACCELERATOR, Scorer
from imagereward.scoring.unparted import as_scorer
from imagereward.serve import answers
from imagereward.serve.admission import RESERVATION, AdmissionMiddleware, Capacity, Reservation
from imagereward.serve.batching import Batcher, ScoringRequest
from imagereward.serve.connections import Connections
from imagereward.serve.limits import Limits, Refused
from imagereward.serve.memory import Trimmer, share_one_arena
from imagereward.serve.meters import Meters
from imagereward.serve.parsing.bodies import NPY_TYPE, read
from imagereward.serve.parsing.images import decode
from imagereward.serve.parsing.questions import (
    AnyQuestion,
    JsonQuestion,
    MatrixQuestion,
    RankQuestion,
    RegionQuestion,
    ScoreQuestion,
    SimpleQuestion,
)
from imagereward.serve.reference import reference
from imagereward.serve.region import region_rewards
from imagereward.version import __version__

# Content-Security-Policy of the HTML pages: scripts may talk to this server only, so that a hostile prompt
# or picture cannot send anything elsewhere.
PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src blob: data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The paths that score: only their POST bodies are read.
ASKING = ("/v1/score", "/v1/rank", "/v1/matrix", "/score", "/calculate_reward")
FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": answers.Fault, "description": reason}
    for status, reason in {
        400: "The body is not of its format.",
        401: "No token, or a wrong one.",
        404: "No such model.",
        408: "The body took too long to arrive.",
        413: "Too large, too many images, prompts, pairs or pixels.",
        415: "Another format.",
        422: "Fields missing, unknown or wrong; an image that cannot be read, or has no score.",
        429: "The server is full; `Retry-After` says when to come again.",
    }.items()
}


def create_app(
    scorers: Mapping[str, PairScorer],
    *,
    limits: Limits | None = None,
    batch_size: int | None = None,
    window: float = 0.005,
    token: str | None = None,
) -> FastAPI:
    """An ASGI app that serves `scorers` by name; the first is the default.

    limits      bounds of one request and of the queue; default: `Limits()`
    batch_size  images in one forward pass, at least 1; default: by the first scorer's device
    window      seconds that a request may wait so that others join its batch; default: 0.005
    token       clients must send it as `Authorization: Bearer TOKEN`; default: None, anyone may ask

    Raises InputError for no scorers, a batch size below 1 and a token that no header can carry.
    """
    if not scorers:
        raise InputError("nothing to serve: give at least one scorer, as {name: scorer}")
    if token is not None:
        token = checked_token(token, "the token")
    share_one_arena()
    served = {name: as_scorer(scorer) for name, scorer in scorers.items()}
    state = ServerState(served, limits or Limits(), batch_size, window)
    app = FastAPI(
        title="imagereward",
        version=__version__,
        summary="Scores of images for prompts, by reward models.",
        lifespan=state.open,
        docs_url=None,  # FastAPI's own loads its viewer from another server
        redoc_url=None,
    )
    _add_routes(app, state)
    paths = {path for route in app.routes if (path := getattr(route, "path", None))}
    app.add_middleware(
        AdmissionMiddleware,
        paths=paths,
        asking=ASKING,
        capacity=state.capacity,
        limits=state.limits,
        meters=state.meters,
        token=token,
        body_gone=Trimmer().body_gone,
    )
    app.state.connections = Connections(state.limits.unauthenticated, state.limits.unauthenticated_seconds)
    app.add_exception_handler(Exception, _failed)
    return app


class ServerState:
    """Shared by all requests: scorers, model thread, decoding threads, limits, capacity and counters."""

    def __init__(self, scorers: dict[str, Scorer], limits: Limits, batch_size: int | None, window: float):
        self.scorers = scorers
        self.limits = limits
        self.meters = Meters()
        self.capacity = Capacity(limits, self._seconds_per_image, self.meters.queue)
        device = next(iter(scorers.values())).device.type
        default = DEFAULT_BATCH.get(device, DEFAULT_BATCH_ACCELERATOR)
        self._batch_size = default if batch_size is None else whole_number("batch_size", batch_size, 1)
        if isinstance(window, bool) or not isinstance(window, int | float) or not 0 <= window <= 3600:
            raise InputError(f"window={window!r}: expected 0 to 3600 seconds")
        self._window = window

    @contextlib.asynccontextmanager
    async def open(self, app: FastAPI):
        """The app's lifespan: starts the threads; at the end waits until queued requests are scored."""
        self.batcher = Batcher(self.scorers, self._batch_size, self._window, self.meters.batch)
        self.threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "imagereward-decode")
        yield
        self.threads.shutdown(cancel_futures=True)
        await asyncio.to_thread(self.batcher.close)

    async def answer(
        self, question_class: type[AnyQuestion], request: Request
    ) -> tuple[ScoringRequest, torch.Tensor, dict]:
        """(what was scored, its scores float32 [P], the answer's fields model, tokens and truncated)."""
        loop = asyncio.get_running_loop()
        reservation: Reservation = request.scope[RESERVATION]
        content_type, query = request.headers.get("content-type", ""), request.query_params.multi_items()
        prepared = await loop.run_in_executor(
            self.threads, self._prepare_or_refuse, question_class, reservation, content_type, query
        )
        if isinstance(prepared, Refused):
            raise prepared
        scored, facts = prepared
        try:
            scores = await asyncio.wrap_future(self.batcher.submit(scored))
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # the frames hold the images of a whole batch
            raise
        return scored, scores, facts

    def _prepare_or_refuse(self, *arguments) -> tuple[ScoringRequest, dict] | Refused:
        """`_prepare`; Refused is returned, since a future that raises it would keep the body in memory."""
        try:
            return self._prepare(*arguments)
        except Refused as refused:
            return refused.alone()

    def _prepare(
        self,
        question_class: type[AnyQuestion],
        reservation: Reservation,
        content_type: str,
        query: list[tuple[str, str]],
    ) -> tuple[ScoringRequest, dict]:
        """Parse the body, decode its images and count tokens; runs in a decoding thread."""
        question = read(question_class, reservation.body(), content_type, query, self.limits)
        name = next(iter(self.scorers)) if question.model is None else question.model
        if name not in self.scorers:
            raise Refused(404, f"no model {name[:100]!r} here; there are: {', '.join(self.scorers)}")
        reservation.take("images", len(question.images) - 1)
        scorer, prompts = self.scorers[name], question.texts()
        if fault := next(filter(None, map(scorer.prompt_fault, prompts)), None):
            raise Refused(422, fault)
        pixels = decode(question.images, scorer.processors, self.limits, reservation)
        reservation.give("bytes")
        tokens, truncated = scorer.reading(prompts)
        pairs = torch.tensor(question.rows(), dtype=torch.long)
        facts = {"model": name, "tokens": tokens, "truncated": truncated}
        return ScoringRequest(name, prompts, pixels, pairs), facts

    def models(self) -> answers.ModelsAnswer:
        """The answer of /v1/models: a card for each scorer, and the limits."""
        cards = [
            answers.ModelCard(
                name=name,
                kind=scorer.config.kind,
                scores=REGISTRY[name].scores if name in REGISTRY else "",
                max_length=scorer.config.max_length,
                dtype=str(scorer.dtype).removeprefix("torch."),
                device=str(scorer.device),
            )
            for name, scorer in self.scorers.items()
        ]
        return answers.ModelsAnswer(models=cards, limits=asdict(self.limits))

    def _seconds_per_image(self) -> float:
        return self.batcher.seconds_per_image


def _add_routes(app: FastAPI, state: ServerState) -> None:
    page = render("server.html")

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(reference(app.openapi()), headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/health", response_model=answers.HealthAnswer, responses={503: {"model": answers.HealthAnswer}})
    async def health() -> Response:
        """200 while the model thread runs, 503 once it has ended."""
        alive = state.batcher.alive
        return JSONResponse({"status": "ok" if alive else "the model has stopped"}, 200 if alive else 503)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(state.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> answers.ModelsAnswer:
        """The scorers that are served, the default first."""
        return state.models()

    @app.post("/v1/score", **_asks(ScoreQuestion, answers.ScoreAnswer))
    async def score(request: Request) -> Response:
        """One score a pair: image i with prompt i, or the [image, prompt] indices in `pairs`."""
        _, scores, facts = await state.answer(ScoreQuestion, request)
        numbers, errors = answers.numbers(scores), answers.reasons(scores)
        return _json(answers.ScoreAnswer(**facts, scores=numbers, errors=errors))

    @app.post("/v1/rank", **_asks(RankQuestion, answers.RankAnswer))
    async def rank(request: Request) -> Response:
        """Scores and ranks of several images for one prompt."""
        _, scores, facts = await state.answer(RankQuestion, request)
        rewards = answers.complete(scores)
        order = sorted(range(len(rewards)), key=lambda index: -rewards[index])
        return _json(answers.RankAnswer(**facts, scores=rewards, ranks=ranks_of(rewards), order=order))

    @app.post("/v1/matrix", **_asks(MatrixQuestion, answers.MatrixAnswer))
    async def matrix(request: Request) -> Response:
        """scores[m][n] of prompt m with image n; each image is encoded once."""
        scored, scores, facts = await state.answer(MatrixQuestion, request)
        table = answers.numbers(scores.view(len(scored.prompts), -1))
        return _json(answers.MatrixAnswer(**facts, scores=table))

    @app.post("/score", **_asks(SimpleQuestion, answers.SimpleAnswer))
    async def simple(request: Request) -> Response:
        """One image, one prompt, one score."""
        _, scores, _ = await state.answer(SimpleQuestion, request)
        return _json(answers.SimpleAnswer(score=answers.complete(scores)[0]))

    @app.post("/calculate_reward", **_asks(RegionQuestion, answers.RegionAnswer))
    async def calculate_reward(request: Request) -> Response:
        """One inpainted image with its mask: the terms of a reward of the region."""
        return _json(answers.RegionAnswer(**await region_rewards(state, request)))


def _asks(question: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI description of a path whose body this package reads itself, instead of FastAPI."""
    schema = question.model_json_schema()
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if not issubclass(question, JsonQuestion):
        fields = {**schema["properties"], "images": _FILES}
        content["multipart/form-data"] = {"schema": {**schema, "properties": fields}}
        content[NPY_TYPE] = {"schema": {"type": "string", "format": "binary"}}
    body = {"requestBody": {"required": True, "content": content}}
    return {"response_model": answer, "responses": FAULTS, "openapi_extra": body}


_FILES = {
    "type": "array",
    "items": {"type": "string", "format": "binary"},
    "description": "Image files; an .npy file is uint8 [N, H, W, 3].",
}


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


async def _failed(request: Request, error: Exception) -> Response:
    """The answer 500 for an unexpected exception; its traceback is in the server's log."""
    return JSONResponse({"detail": f"{type(error).__name__}: {error}"}, 500)
