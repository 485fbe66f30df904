"""Returns freed memory to the operating system with glibc's malloc_trim; does nothing without glibc.
glibc keeps freed memory for later use, so that a server holds many times what it needs after large bodies.
It also gives every thread a heap of its own ("arena"), each of which can keep 64 MB that malloc_trim does
not return.
"""

import asyncio
import ctypes
import threading
from collections.abc import Callable

LARGE = 2**20  # bytes of a body that are worth a trim
DELAY = 0.5  # seconds from the end of a request to the trim, so that one trim serves several requests


M_ARENA_MAX = -8  # from glibc's malloc.h


def _of_glibc(name: str) -> Callable[..., int] | None:
    """The function `name` of glibc; None with another C library."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None


_trim = _of_glibc("malloc_trim")


def share_one_arena() -> None:
    """Make threads that start after this call allocate from the main heap."""
    if _trim is not None and (mallopt := _of_glibc("mallopt")) is not None:
        mallopt(M_ARENA_MAX, 1)


class Trimmer:
    """Calls malloc_trim in a thread, `DELAY` seconds after the first of several large bodies is gone."""

    def __init__(self) -> None:
        self._waiting = False

    def body_gone(self, size: int) -> None:
        """Note the end of a request whose body had `size` bytes. Call it in the event loop."""
        if size >= LARGE and _trim is not None and not self._waiting:
            self._waiting = True
            asyncio.get_running_loop().call_later(DELAY, self._start)

    def _start(self) -> None:
        self._waiting = False
        if _trim is not None:
            threading.Thread(target=_trim, args=(0,), name="imagereward-trim", daemon=True).start()
