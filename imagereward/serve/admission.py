"""Admission of requests: token, bounds on bodies and on the queue, cancellation when a client disconnects.

The middleware is plain ASGI around the whole app. Only a POST with the token to a path that scores reserves
capacity (images in the queue, bytes of bodies). The body of any other request is not read.
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

# Paths that need no token: they neither run a model nor reveal other requests.
OPEN = ("/", "/health", "/docs", "/openapi.json")
RESERVATION = "imagereward.reservation"
DECODED = "bytes of decoded images"


class Capacity:
    """Counts images, body bytes and bytes of decoded images of all admitted requests, up to `limits.queue`,
    `limits.held` and `limits.decoded`.

    seconds_per_image   recent time of the model for an image; gives the Retry-After of a refusal
    gauge               Prometheus gauge that reads the number of images

    Threads may share it.
    """

    def __init__(self, limits: Limits, seconds_per_image: Callable[[], float], gauge):
        self.most = {"images": limits.queue, "bytes": limits.held, DECODED: limits.decoded}
        self._taken = dict.fromkeys(self.most, 0)
        self._lock = threading.Lock()
        self._seconds_per_image = seconds_per_image
        gauge.set_function(lambda: self._taken["images"])

    def take(self, what: str, count: int) -> None:
        """Reserve `count` "images", "bytes" or `DECODED`; Refused 429 with Retry-After (1 to 60 s) beyond the
        limit."""
        with self._lock:
            if self._taken[what] + count <= self.most[what]:
                self._taken[what] += count
                return
            seconds = self._taken["images"] * self._seconds_per_image()
        wait = min(60, max(1, math.ceil(seconds)))
        reason = f"the server is full: {self.most[what]} {what}; try again in {wait} s"
        raise Refused(429, reason, headers={"Retry-After": str(wait)})

    def give(self, what: str, count: int) -> None:
        """Give `count` of what was reserved back."""
        with self._lock:
            self._taken[what] -= count


class Reservation:
    """The capacity that one request has reserved, and its body. Threads may share it."""

    def __init__(self, capacity: Capacity):
        self._capacity = capacity
        self._share = dict.fromkeys(capacity.most, 0)
        self._body = b""
        self._lock = threading.Lock()
        self.closed = False

    def take(self, what: str, count: int) -> None:
        """Reserve `count` more "images" or "bytes"; Refused 429 if full, 499 once the request is closed."""
        with self._lock:
            if self.closed:
                raise Refused(DROPPED, "the client has disconnected")
            self._capacity.take(what, count)
            self._share[what] += count

    def take_decoded(self, count: int) -> None:
        """Reserve the bytes of a decoded image; as `take`, but Refused 413 if they can never fit."""
        if self._share[DECODED] + count > (most := self._capacity.most[DECODED]):
            raise Refused(413, f"the images of one request take more than {most} bytes: send fewer")
        self.take(DECODED, count)

    def keep(self, body: bytes) -> None:
        """Store the body until `body` is called."""
        self._body = body

    def body(self) -> bytes:
        """Return the body and forget it, so that it leaves memory while its images wait for the model."""
        body, self._body = self._body, b""
        return body

    def give(self, what: str) -> None:
        """Give back all "images", "bytes" or `DECODED` that this request has reserved."""
        with self._lock:
            self._capacity.give(what, self._share[what])
            self._share[what] = 0

    def close(self) -> None:
        """End the request: give everything back; later calls of `take` are refused."""
        self.closed = True
        self._body = b""
        for what in self._share:
            self.give(what)


def path_of(scope: Scope) -> str:
    """The request's path below the prefix at which a server says that the app is (`root_path`)."""
    root, path = scope.get("root_path", "").rstrip("/"), scope["path"]
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


class AdmissionMiddleware:
    """ASGI middleware: checks the token, reads bodies within limits, cancels work of clients that left.

    paths      all paths of the app: the labels of its counters
    asking     paths whose POST has a body and asks for scores
    capacity   shared by all requests
    token      required of all paths but `OPEN`; None: of none
    body_gone  called with a body's size in bytes when its request is over

    A POST's handler finds its `Reservation`, which holds the body, in `scope[RESERVATION]`.
    """

    def __init__(
        self,
        app: ASGIApp,
        paths: Collection[str],
        asking: Collection[str],
        capacity: Capacity,
        limits: Limits,
        meters: Meters,
        token: str | None,
        body_gone: Callable[[int], None],
    ):
        self._app = app
        self._paths = paths
        self._asking = asking
        self._capacity = capacity
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
            # Unknown paths share one label: otherwise clients could add labels without limit.
            path = path_of(scope) if path_of(scope) in self._paths else "other"
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
        if path_of(scope) in OPEN:
            await self._app(scope, exchange.no_body, exchange.send)
            return
        self._check_token(scope)
        exchange.admitted = True
        connection: Any = scope.get("state", {}).get(CONNECTION)
        if connection is not None:
            connection.admitted()
        try:
            if scope["method"] == "POST" and path_of(scope) in self._asking:
                await self._answer(scope, exchange)
            else:
                await self._app(scope, exchange.no_body, exchange.send)
        finally:
            if connection is not None:
                connection.finished()

    async def _answer(self, scope: Scope, exchange: Exchange) -> None:
        """Read a scoring request's whole body under a reservation, then let the app answer it."""
        reservation = Reservation(self._capacity)
        try:
            reservation.take("images", 1)  # every scoring request has at least one image
            try:
                async with asyncio.timeout(self._limits.seconds):
                    complete = await self._read(scope, exchange, reservation)
            except TimeoutError as error:
                reason = f"the body took more than {self._limits.seconds} s to arrive"
                raise Refused(408, reason, headers={"Connection": "close"}) from error
            if complete:
                scope[RESERVATION] = reservation
                await self._unless_gone(scope, exchange)
        finally:
            reservation.close()
            self._body_gone(exchange.received)

    def _check_token(self, scope: Scope) -> None:
        if self._token is None:
            return
        given = header(scope, b"authorization")
        scheme, _, token = given.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
            reason = "this server asks for a token: send the header `Authorization: Bearer TOKEN`"
            raise Refused(401, reason, headers={"WWW-Authenticate": "Bearer"})

    async def _read(self, scope: Scope, exchange: Exchange, reservation: Reservation) -> bool:
        """Read the body into the reservation; False if the client disconnects before its end."""
        if header(scope, b"content-encoding") not in (b"", b"identity"):
            raise Refused(415, "compressed bodies are not read")
        most = self._limits.body
        too_large = f"the body is larger than {most} bytes, the most that this server takes"
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
            reservation.take("bytes", len(chunk))
            chunks.append(chunk)
            if exchange.complete:
                reservation.keep(b"".join(chunks))
                return True

    async def _unless_gone(self, scope: Scope, exchange: Exchange) -> None:
        """Run the app; cancel it if the client disconnects, the only message that can still arrive."""
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
