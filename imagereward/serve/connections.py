"""Bounds on connections that have not shown the token: their number and age. Only for uvicorn.

Without these bounds, anyone who can reach the port could open connections, send half a header on each, and
use up the process's file descriptors.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

# Key of a request's connection in `scope["state"]`, for `admission.py`.
CONNECTION = "imagereward.connection"
LEAST_READ = 2**15  # bytes of an answer that a client reads between two deadlines


class Connections:
    """The connections of one server that have not shown the token, oldest first. For its event loop only.

    most     beyond this number the oldest is cut: clients with the token show it within moments
    seconds  after which a connection without the token, or idle between two requests, is cut
    """

    def __init__(self, most: int, seconds: float):
        self._most = most
        self.seconds = seconds
        self._unproven: dict[BoundedProtocol, None] = {}

    def __len__(self) -> int:
        return len(self._unproven)

    def add(self, connection: "BoundedProtocol") -> None:
        """Register a new connection; cut the oldest if there are more than `most`."""
        self._unproven[connection] = None
        if len(self._unproven) > self._most:
            next(iter(self._unproven)).cut()

    def discard(self, connection: "BoundedProtocol") -> None:
        """Remove a connection that has shown the token, or that is closed."""
        self._unproven.pop(connection, None)


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with a deadline until a request on the connection has shown the token."""

    def __init__(self, bounds: Connections, config, server_state, app_state: dict[str, Any], **more):
        super().__init__(config, server_state, {**app_state, CONNECTION: self}, **more)
        self._bounds = bounds
        self._deadline: asyncio.TimerHandle | None = None
        self._unsent = 0  # bytes of an answer that the client had not read when the deadline was set
        self._answering = 0  # admitted requests that are not over: of pipelined ones, two overlap

    def connection_made(self, transport) -> None:
        """Start the deadline when the connection opens, before its first byte."""
        super().connection_made(transport)
        self._set_deadline()
        self._bounds.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadline."""
        self._clear_deadline()
        self._bounds.discard(self)
        super().connection_lost(exc)

    def admitted(self) -> None:
        """A request has shown the token: cancel the deadline while it is answered."""
        self._answering += 1
        self._clear_deadline()
        self._bounds.discard(self)

    def finished(self) -> None:
        """An admitted request is over: start the deadline, unless the next one is being answered already."""
        self._answering -= 1
        if not self._answering and not self.transport.is_closing():
            self._set_deadline()
            self._unsent = self.transport.get_write_buffer_size()

    def cut(self) -> None:
        """Close the connection at once, without sending what is buffered."""
        self._bounds.discard(self)
        self.transport.abort()

    def _set_deadline(self) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(self._bounds.seconds, self._expired)

    def _expired(self) -> None:
        """Cut, unless the client still reads its answer, `LEAST_READ` bytes of it since the last deadline."""
        left = self.transport.get_write_buffer_size()
        reads = left and self._unsent - left >= LEAST_READ
        self._unsent = left
        if reads:
            self._set_deadline()
        else:
            self.cut()

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
