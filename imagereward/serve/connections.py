"""Connections that have not shown the token: bounded in number and in time. Only for uvicorn.

Without this, whoever can reach the port can open connections, send half a header on each, and wait until
the process has no file descriptors left for anybody else.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

# Where `scope["state"]` holds the connection of a request, for `guard.py`.
CONNECTION = "imagereward.connection"


class Connections:
    """The unproven connections of one server, oldest first. Used by its event loop only.

    most     with more, the oldest is cut: someone who has the token shows it at once, and is the newest
    seconds  after which an unproven connection is cut, and a proven one that is between two requests
    """

    def __init__(self, most: int, seconds: float):
        self._most = most
        self.seconds = seconds
        self._unproven: dict[BoundedProtocol, None] = {}

    def __len__(self) -> int:
        return len(self._unproven)

    def add(self, connection: "BoundedProtocol") -> None:
        """A connection was opened."""
        self._unproven[connection] = None
        if len(self._unproven) > self._most:
            next(iter(self._unproven)).cut()

    def discard(self, connection: "BoundedProtocol") -> None:
        """A connection has shown the token, or is closed."""
        self._unproven.pop(connection, None)


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol, which knows whether a request on this connection has shown the token."""

    def __init__(self, bounds: Connections, config, server_state, app_state: dict[str, Any], **more):
        super().__init__(config, server_state, {**app_state, CONNECTION: self}, **more)
        self._bounds = bounds
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        """The deadline starts with the connection, not with its first byte."""
        super().connection_made(transport)
        self._set_deadline()
        self._bounds.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to bound."""
        self._clear_deadline()
        self._bounds.discard(self)
        super().connection_lost(exc)

    def admitted(self) -> None:
        """A request on this connection may ask: it has as long as its answer takes."""
        self._clear_deadline()
        self._bounds.discard(self)

    def finished(self) -> None:
        """An admitted request is over: the next must come in time, or the connection ends."""
        if not self.transport.is_closing():
            self._set_deadline()

    def cut(self) -> None:
        """End the connection now, whatever is on its way."""
        self._bounds.discard(self)
        self.transport.abort()

    def _set_deadline(self) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(self._bounds.seconds, self.cut)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
