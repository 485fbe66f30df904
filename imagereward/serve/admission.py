"""Admission: who may ask, how much, and what happens when they leave. Plain ASGI, around the whole app.

Only a POST to a path that scores, with the token, takes places in the queue and room for its body. No other
request's body is read.
"""

import asyncio
import hmac
import math
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from imagereward.serve.connections import CONNECTION
from imagereward.serve.exchange import Exchange, header
from imagereward.serve.limits import Limits, Refused
from imagereward.serve.meters import DROPPED, Meters

# What needs no token: nothing here asks the model or tells what it was asked.
OPEN = ("/", "/health", "/docs", "/openapi.json")
TICKET = "imagereward.ticket"


class Room:
    """How much is in the building: images of all requests, bytes of all bodies. Used from any thread."""

    def __init__(self, limits: Limits, seconds_per_image: Callable[[], float], gauge):
        self._most = {"images": limits.queue, "bytes": limits.held}
        self._taken = {"images": 0, "bytes": 0}
        self._lock = threading.Lock()
        self._seconds_per_image = seconds_per_image
        gauge.set_function(lambda: self._taken["images"])

    def take(self, what: str, count: int) -> None:
        """Refused 429, with the time in which the queue should be through, if that is too much."""
        with self._lock:
            if self._taken[what] + count <= self._most[what]:
                self._taken[what] += count
                return
            seconds = self._taken["images"] * self._seconds_per_image()
        wait = min(60, max(1, math.ceil(seconds)))
        reason = f"the server is full: {self._most[what]} {what}; try again in {wait} s"
        raise Refused(429, reason, headers={"Retry-After": str(wait)})

    def give(self, what: str, count: int) -> None:
        """Back what was taken."""
        with self._lock:
            self._taken[what] -= count


class Ticket:
    """One request's share of the room, and its body. Used from any thread."""

    def __init__(self, room: Room):
        self._room = room
        self._share = {"images": 0, "bytes": 0}
        self._body = b""
        self._lock = threading.Lock()
        self.closed = False

    def take(self, what: str, count: int) -> None:
        """More room; Refused 429 if there is none, 499 if the request is over."""
        with self._lock:
            if self.closed:
                raise Refused(DROPPED, "the client is gone")
            self._room.take(what, count)
            self._share[what] += count

    def keep(self, body: bytes) -> None:
        """Hold the body until it is asked for."""
        self._body = body

    def body(self) -> bytes:
        """The body, once: it should be gone from memory while its images wait for the model."""
        body, self._body = self._body, b""
        return body

    def give(self, what: str) -> None:
        """Back all of it."""
        with self._lock:
            self._room.give(what, self._share[what])
            self._share[what] = 0

    def close(self) -> None:
        """The request is over: back everything, and from now on its thread gets nothing."""
        self.closed = True
        self._body = b""
        self.give("images")
        self.give("bytes")


class Guard:
    """ASGI middleware: token, room, bodies read whole within bounds, work dropped when its client is gone.

    paths   all that the app has; asking: those whose POST takes a body and asks for scores
    A POST's handler finds its `Ticket` in `scope[TICKET]`, and the body in that.
    """

    def __init__(
        self,
        app: ASGIApp,
        paths: Collection[str],
        asking: Collection[str],
        room: Room,
        limits: Limits,
        meters: Meters,
        token: str | None,
        body_gone: Callable[[int], None],
    ):
        self._app = app
        self._paths = paths
        self._asking = asking
        self._room = room
        self._limits = limits
        self._meters = meters
        self._token = None if token is None else token.encode()
        self._body_gone = body_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        exchange = Exchange(scope, receive, send, self._limits.body)
        try:
            await self._admit_or_refuse(scope, exchange)
        except Exception:
            exchange.status = 500
            raise
        finally:
            # One name for all paths that the app has not: what people type must not become a label.
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._meters.request(path, exchange.status, time.perf_counter() - start)

    async def _admit_or_refuse(self, scope: Scope, exchange: Exchange) -> None:
        try:
            await self._admit(scope, exchange)
            return
        except Refused as error:
            refused = error.alone()
        answer = JSONResponse(refused.content(), refused.status, refused.headers)
        await answer(scope, exchange.receive, exchange.send)

    async def _admit(self, scope: Scope, exchange: Exchange) -> None:
        if scope["path"] in OPEN:
            await self._app(scope, exchange.no_body, exchange.send)
            return
        self._check_token(scope)
        exchange.admitted = True
        connection: Any = scope.get("state", {}).get(CONNECTION)
        if connection is not None:
            connection.admitted()
        try:
            if scope["method"] == "POST" and scope["path"] in self._asking:
                await self._answer(scope, exchange)
            else:
                await self._app(scope, exchange.no_body, exchange.send)
        finally:
            if connection is not None:
                connection.finished()

    async def _answer(self, scope: Scope, exchange: Exchange) -> None:
        """A request for scores: read whole, then answered, within its ticket."""
        ticket = Ticket(self._room)
        try:
            ticket.take("images", 1)  # that is the least it asks for
            try:
                async with asyncio.timeout(self._limits.seconds):
                    complete = await self._read(scope, exchange, ticket)
            except TimeoutError as error:
                reason = f"the body took more than {self._limits.seconds} s to arrive"
                raise Refused(408, reason, headers={"Connection": "close"}) from error
            if complete:
                scope[TICKET] = ticket
                await self._unless_gone(scope, exchange)
        finally:
            ticket.close()
            self._body_gone(exchange.received)

    def _check_token(self, scope: Scope) -> None:
        if self._token is None:
            return
        given = header(scope, b"authorization")
        scheme, _, token = given.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
            reason = "this server asks for a token: send the header `Authorization: Bearer TOKEN`"
            raise Refused(401, reason, headers={"WWW-Authenticate": "Bearer"})

    async def _read(self, scope: Scope, exchange: Exchange, ticket: Ticket) -> bool:
        """Whether the body arrived; False if the client went away before its end."""
        if header(scope, b"content-encoding") not in (b"", b"identity"):
            raise Refused(415, "compressed bodies are not read")
        most = self._limits.body
        too_large = f"the body is larger than {most} bytes, which is what is taken here"
        if header(scope, b"content-length") and not exchange.fits:
            raise Refused(413, too_large)
        chunks = []
        while True:
            message = await exchange.receive()
            if message["type"] == "http.disconnect":
                return False
            chunk = message.get("body", b"")
            if exchange.received > most:
                raise Refused(413, too_large)
            ticket.take("bytes", len(chunk))
            chunks.append(chunk)
            if exchange.complete:
                ticket.keep(b"".join(chunks))
                return True

    async def _unless_gone(self, scope: Scope, exchange: Exchange) -> None:
        """Run the app, and cancel it when the client disconnects: all that can still arrive is that."""
        work = asyncio.ensure_future(self._app(scope, exchange.receive, exchange.send))
        gone = asyncio.ensure_future(exchange.receive())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or exchange.finished:
                await work
        finally:
            for task in (gone, work):
                task.cancel()
            await asyncio.gather(gone, work, return_exceptions=True)
