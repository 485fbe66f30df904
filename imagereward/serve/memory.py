"""Giving freed memory back to the system.

glibc keeps what is freed for later use, in pieces between what is still in use: after large bodies that can
be many times what the server holds.
"""

import asyncio
import ctypes
import threading
from collections.abc import Callable

LARGE = 2**20  # bytes of a body; smaller ones leave nothing that the next would not use
DELAY = 0.5  # seconds, in which other requests may end too


def _trim_of_glibc() -> Callable[[int], int] | None:
    """glibc's malloc_trim, None with another C library."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


_trim = _trim_of_glibc()


class Trimmer:
    """Gives freed memory back soon after a large body is gone, once for all that are gone by then."""

    def __init__(self) -> None:
        self._waiting = False

    def body_gone(self, size: int) -> None:
        """A request is over whose body had `size` bytes. Called in the event loop."""
        if size >= LARGE and _trim is not None and not self._waiting:
            self._waiting = True
            asyncio.get_running_loop().call_later(DELAY, self._start)

    def _start(self) -> None:
        self._waiting = False
        if _trim is not None:
            threading.Thread(target=_trim, args=(0,), name="imagereward-trim", daemon=True).start()
