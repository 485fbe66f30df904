"""ASGI's `receive` and `send` of one HTTP request, with counts of bytes read and the answer's status."""

import asyncio
import contextlib

from starlette.types import Message, Receive, Scope, Send

from imagereward.serve.meters import DROPPED

# Seconds and bytes for which the rest of a refused body is read and thrown away before the connection closes:
# closing while the client still sends would lose the answer.
LINGER = 1.0
LINGER_BYTES = 16 * 2**20


class Exchange:
    """`receive` and `send` of one request.

    most   bytes that a body may have

    If the answer is sent before the whole body has arrived, the connection is closed after it. Only for an
    admitted request whose body is within `most`, the server reads the rest and keeps the connection.
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
        """The next message; adds its bytes to `received`."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        return message

    async def no_body(self) -> Message:
        """Stands in for `receive` where the body must not be read: an empty body, then the disconnect."""
        if not self._said_empty:
            self._said_empty = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while (message := await self.receive())["type"] != "http.disconnect":
            pass
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the answer; adds `Connection: close` where the body will not be read whole."""
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
                # The client has the whole answer now; the empty message below ends the connection.
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
    """The value of a request's header `name` (lower case); b"" if the request has no such header."""
    return next((value for key, value in scope["headers"] if key == name), b"")
