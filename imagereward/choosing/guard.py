"""Guard: admits requests of this page alone, by host, origin and token, and with small bodies."""

import hashlib
import hmac
import json
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagereward.serve.connections import CONNECTION
from imagereward.serve.run import is_loopback

MOST_BODY = 4096  # bytes


class Guard:
    """ASGI middleware.

    token  asked for in the address once, and kept by the browser in a cookie; None: only for requests whose
           Host is this machine, which keeps out pages of other sites whose name resolves to it

    A request that says from which site it comes has to come from this one, unless it follows a link to the
    page. A body that does not arrive whole changes nothing. Bodies above 4 KiB are refused
    while they arrive.
    """

    def __init__(self, app: ASGIApp, token: str | None):
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection: Any = scope.get("state", {}).get(CONNECTION)
        refused = self._refused(scope)
        if refused is not None:
            await refused(scope, receive, send)
            return
        if connection is not None:
            connection.admitted()
        try:
            body = await _read(receive)
            if body is None:
                answer = JSONResponse({"detail": f"a body of more than {MOST_BODY} bytes"}, 413)
                await answer(scope, receive, send)
                return
            await self._app(scope, _replaying(body, receive), send)
        except ClientDisconnect:  # what was not sent whole changes nothing
            return
        finally:
            if connection is not None:
                connection.finished()

    def _refused(self, scope: Scope) -> JSONResponse | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        origin = headers.get("origin")
        if origin not in (None, "null") and urlsplit(str(origin)).netloc != host:
            return JSONResponse({"detail": f"a request of the page {origin}"}, 403)
        link = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not link:
            return JSONResponse({"detail": "a request of another page"}, 403)
        if scope["method"] == "POST" and headers.get("content-type", "").split(";")[0] != "application/json":
            return JSONResponse({"detail": "expected application/json"}, 415)
        if self._token is None:
            if not _is_this_machine(host):
                return JSONResponse({"detail": f"this page is for this machine alone, not for {host}"}, 403)
            return None
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if hmac.compare_digest((given or _cookie(headers, self._token)).encode(), self._token.encode()):
            return None
        return JSONResponse(
            {"detail": "open the address that imagereward choose printed, with its token"}, 401
        )


def _is_this_machine(host: str) -> bool:
    """Whether a Host header is localhost or a loopback address, which no name of another site is."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def cookie_of(token: str) -> str:
    """The name of the cookie with the token: one for each page, as browsers keep one jar for all ports."""
    return f"imagereward-choose-{hashlib.sha256(token.encode()).hexdigest()[:8]}"


def _cookie(headers: dict[str, str], token: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(cookie_of(token))
    except CookieError:
        return ""
    return found.value if found else ""


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None if it is too long."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > MOST_BODY:
            return None
        if not message.get("more_body"):
            return body


def _replaying(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def parsed(body: bytes) -> dict[str, Any]:
    """A JSON object; ValueError for anything else."""
    try:
        value = json.loads(body)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")
    return value
