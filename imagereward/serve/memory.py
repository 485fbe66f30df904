"""Giving freed memory back to the system, where the C library is glibc; elsewhere nothing is done.

glibc keeps what is freed for later use, in pieces between what is still in use: after large bodies that can
be many times what the server holds. And it gives threads heaps of their own ("arenas"), at whose ends up to
64 MB each stay that no call gives back.
"""

import asyncio
import ctypes
import threading
from collections.abc import Callable

LARGE = 2**20  # bytes of a body; smaller ones leave nothing that the next would not use
DELAY = 0.5  # seconds, in which other requests may end too


M_ARENA_MAX = -8  # from glibc's malloc.h


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of glibc, None with another C library."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None


_trim = _of_glibc("malloc_trim")


def share_one_arena() -> None:
    """Let the process's threads that begin from now on allocate from the main heap: best called early."""
    if _trim is not None and (mallopt := _of_glibc("mallopt")) is not None:
        mallopt(M_ARENA_MAX, 1)


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
