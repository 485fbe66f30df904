"""in_threads: sends the requests of one call in threads, and no more after an error or Ctrl-C; and `wait`."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from imagereward.errors import RemoteError

Item = TypeVar("Item")
Result = TypeVar("Result")

_here = threading.local()  # `stop`, in a thread of `in_threads`: an event that ends its waiting


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], most: int) -> list[Result]:
    """[function(item) for each item], at most `most` at a time.

    The first exception, also KeyboardInterrupt, is raised at once: no further item begins, and those that
    `wait` end. A request that has been sent ends with its answer, or by its timeout.
    """
    if len(items) == 1:
        return [function(items[0])]
    stop = threading.Event()
    threads = ThreadPoolExecutor(max(1, min(most, len(items))), "imagereward-remote", _enter, (stop,))
    try:
        sent = [threads.submit(function, item) for item in items]
        for each in as_completed(sent):
            each.result()
        return [each.result() for each in sent]
    except BaseException:
        stop.set()
        raise
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def wait(seconds: float) -> None:
    """Sleep, before a request is tried again; RemoteError where `in_threads` has been left meanwhile."""
    stop = getattr(_here, "stop", None)
    if stop is None:
        time.sleep(seconds)
    elif stop.wait(seconds):
        raise RemoteError("stopped, and not tried again")


def _enter(stop: threading.Event) -> None:
    _here.stop = stop
