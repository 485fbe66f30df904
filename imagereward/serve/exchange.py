"""One request and its answer, as ASGI passes them, with what was read and sent."""

import asyncio
import contextlib

from starlette.types import Message, Receive, Scope, Send

from imagereward.serve.meters import DROPPED

# Seconds and bytes in which the rest of a body that is not wanted may arrive, to be thrown away: a connection
# that is closed while its client still sends loses the answer.
LINGER = 1.0
LINGER_BYTES = 16 * 2**20


class Exchange:
    """`receive` and `send` of one request.

    Where the answer is sent before the body has arrived, the connection is closed after it, unless the
    request was admitted and its body is within bounds: then the server reads on, to keep the connection.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, most: int):
        self._scope = scope
        self._receive = receive
        self._send = send
        length = header(scope, b"content-length")
        self.fits = length.isdigit() and len(length) < 18 and int(length) <= most
        self.complete = length in (b"", b"0") and not header(scope, b"transfer-encoding")
        self.received = 0  # bytes
        self.admitted = False
        self.status = DROPPED
        self.finished = False
        self._closing = False
        self._said_empty = False

    async def receive(self) -> Message:
        """The next message, counted."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        return message

    async def no_body(self) -> Message:
        """What a handler receives whose request's body is not for it: an empty one, then the disconnect."""
        if not self._said_empty:
            self._said_empty = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while (message := await self.receive())["type"] != "http.disconnect":
            pass
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", []))
            said = any(name.lower() == b"connection" for name, _ in headers)
            self._closing = not self.complete and (said or not (self.admitted and self.fits))
            if self._closing and not said:
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
        elif message["type"] == "http.response.body":
            self.finished = not message.get("more_body", False)
            if self.finished and self._closing:
                # The client has its whole answer now; the connection ends with the next message.
                await self._send({**message, "more_body": True})
                await self._throw_the_rest_away()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _throw_the_rest_away(self) -> None:
        most = self.received + LINGER_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while not self.complete and self.received < most:
                    if (await self.receive())["type"] == "http.disconnect":
                        return


def header(scope: Scope, name: bytes) -> bytes:
    """A request's header, b"" if it has none of that name."""
    return next((value for key, value in scope["headers"] if key == name), b"")
