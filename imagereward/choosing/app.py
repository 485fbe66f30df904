"""The FastAPI app of the page: state, images, answers, undo, training."""

import io
from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, Response

from imagereward.choosing.guard import Guard, cookie_of, parsed
from imagereward.choosing.session import Session
from imagereward.errors import ImageRewardError, InputError
from imagereward.images.reading import read_image
from imagereward.serve.connections import Connections

SIDE = 1024  # pixels of the longer side of an image on the page
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MOST_CONNECTIONS, IDLE_SECONDS = 64, 30


def create_app(session: Session, token: str | None = None) -> FastAPI:
    """An ASGI app with the page at /.

    token   that requests must show; None: requests of this machine alone
    """
    app = FastAPI(title="imagereward choose", docs_url=None, redoc_url=None, openapi_url=None)
    _add_page(app, session, token)
    _add_changes(app, session)

    @app.exception_handler(ImageRewardError)
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, 500)

    app.add_middleware(Guard, token=token)
    app.state.connections = Connections(MOST_CONNECTIONS, IDLE_SECONDS)
    return app


def _add_page(app: FastAPI, session: Session, token: str | None) -> None:
    """The page, the session's state, and the images, which change nothing."""
    page = resources.files("imagereward").joinpath("choosing/page.html").read_text(encoding="utf-8")

    @app.get("/")
    async def index() -> Response:
        answer = HTMLResponse(
            page, headers={"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
        )
        if token is not None:
            answer.set_cookie(cookie_of(token), token, httponly=True, samesite="strict")
        return answer

    @app.get("/state")
    def state() -> Response:
        return JSONResponse(session.state())

    @lru_cache(64)
    def encoded(index: int) -> bytes:
        picture = read_image(session.candidates.images[index], index)
        picture.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "WEBP", quality=90)
        return buffer.getvalue()

    @app.get("/image/{index}")
    def image(index: int) -> Response:
        if not 0 <= index < len(session.candidates.images):
            return JSONResponse({"detail": f"no image {index}"}, 404)
        return Response(encoded(index), media_type="image/webp", headers={"Cache-Control": "max-age=3600"})


def _add_changes(app: FastAPI, session: Session) -> None:
    """The requests that change the session: choose, show, undo and train; each answers with the state."""

    def changed(change: Callable[[], None]) -> Response:
        """The state after a change; 422 and the reason where the change is refused."""
        try:
            change()
        except ValueError as error:
            return JSONResponse({"detail": str(error)}, 422)
        return JSONResponse(session.state())

    @app.post("/choose")
    async def choose(request: Request) -> Response:
        body = await request.body()

        def answer() -> None:
            given = parsed(body)
            session.check_run(given.get("run"))
            session.answer(whole_numbers(given, "images"), whole_numbers(given, "ranking"))

        return await run_in_threadpool(changed, answer)

    @app.post("/show")
    async def show(request: Request) -> Response:
        body = await request.body()
        return await run_in_threadpool(changed, lambda: session.show(parsed(body).get("count")))  # type: ignore[arg-type]

    @app.post("/undo")
    async def undo(request: Request) -> Response:
        body = await request.body()

        def take_back() -> None:
            session.check_run(parsed(body).get("run"))
            session.undo()

        return await run_in_threadpool(changed, take_back)

    @app.post("/train")
    def train() -> Response:
        return changed(session.train)


def whole_numbers(given: dict[str, Any], name: str) -> list[int]:
    """A list of whole numbers of a request. InputError for anything else."""
    value = given.get(name)
    if not isinstance(value, list) or not all(type(each) is int for each in value):
        raise InputError(f"{name}={value!r:.100}: expected a list of whole numbers")
    return value
