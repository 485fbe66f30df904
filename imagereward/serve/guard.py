"""The door: who may ask, how much, and what happens when they leave. Plain ASGI, around the whole app."""

import asyncio
import hmac
import math
import threading
import time
from collections.abc import Callable, Collection

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
    """One request's share of the room, and its body."""

    def __init__(self, room: Room):
        self._room = room
        self._share = {"images": 0, "bytes": 0}
        self._body = b""

    def take(self, what: str, count: int) -> None:
        """More room; Refused 429 if there is none."""
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
        self._room.give(what, self._share[what])
        self._share[what] = 0


class Guard:
    """ASGI middleware: token, room, bodies read whole within bounds, work dropped when its client is gone.

    A POST's handler finds its `Ticket` in `scope[TICKET]`, and the body in that.
    """

    def __init__(
        self,
        app: ASGIApp,
        paths: Collection[str],
        room: Room,
        limits: Limits,
        meters: Meters,
        token: str | None,
    ):
        self._app = app
        self._paths = paths
        self._room = room
        self._limits = limits
        self._meters = meters
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        reply = _Reply(send)
        try:
            await self._admit(scope, receive, reply)
        except Refused as refused:
            headers = dict(refused.headers)
            if not self._fits(scope):
                headers["Connection"] = "close"  # or the rest of it would be read, to be thrown away
            await JSONResponse(refused.content(), refused.status, headers)(scope, receive, reply)
        except Exception:
            reply.status = 500
            raise
        finally:
            # One name for all paths that the app has not: what people type must not become a label.
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._meters.request(path, reply.status, time.perf_counter() - start)

    async def _admit(self, scope: Scope, receive: Receive, reply: "_Reply") -> None:
        if scope["path"] not in OPEN:
            self._check_token(scope)
        if scope["method"] != "POST":
            await self._app(scope, receive, reply)
            return
        ticket = Ticket(self._room)
        try:
            ticket.take("images", 1)  # that is the least it asks for
            try:
                async with asyncio.timeout(self._limits.seconds):
                    complete = await self._read(scope, receive, ticket)
            except TimeoutError as error:
                reason = f"the body took more than {self._limits.seconds} s to arrive"
                raise Refused(408, reason, headers={"Connection": "close"}) from error
            if complete:
                scope[TICKET] = ticket
                await self._unless_gone(scope, receive, reply)
        finally:
            ticket.give("images")
            ticket.give("bytes")

    def _check_token(self, scope: Scope) -> None:
        if self._token is None:
            return
        given = _header(scope, b"authorization")
        scheme, _, token = given.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
            reason = "this server asks for a token: send the header `Authorization: Bearer TOKEN`"
            raise Refused(401, reason, headers={"WWW-Authenticate": "Bearer"})

    async def _read(self, scope: Scope, receive: Receive, ticket: Ticket) -> bool:
        """Whether the body arrived; False if the client went away before its end."""
        if _header(scope, b"content-encoding") not in (b"", b"identity"):
            raise Refused(415, "compressed bodies are not read")
        most = self._limits.body
        too_large = Refused(413, f"the body is larger than {most} bytes, which is what is taken here")
        if _header(scope, b"content-length") and not self._fits(scope):
            raise too_large
        chunks, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > most:
                raise too_large
            ticket.take("bytes", len(chunk))
            chunks.append(chunk)
            if not message.get("more_body", False):
                ticket.keep(b"".join(chunks))
                return True

    def _fits(self, scope: Scope) -> bool:
        """Whether the body is declared to be within the limit: a chunked one declares nothing."""
        if scope["method"] != "POST":
            return True
        declared = _header(scope, b"content-length")
        return declared.isdigit() and len(declared) < 18 and int(declared) <= self._limits.body

    async def _unless_gone(self, scope: Scope, receive: Receive, reply: "_Reply") -> None:
        """Run the app, and cancel it when the client disconnects: all that can still arrive is that."""
        work = asyncio.ensure_future(self._app(scope, receive, reply))
        gone = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or reply.finished:
                await work
        finally:
            for task in (gone, work):
                task.cancel()
            await asyncio.gather(gone, work, return_exceptions=True)


class _Reply:
    """`send`, and what was sent."""

    def __init__(self, send: Send):
        self._send = send
        self.status = DROPPED
        self.finished = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.finished = not message.get("more_body", False)
        await self._send(message)


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")
