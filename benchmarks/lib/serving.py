"""Runs a real reward server in a thread, with scorers that can be held back, and builds request bodies."""

import base64
import contextlib
import io
import threading
import time

import httpx2
import numpy as np

from benchmarks.lib.small_scorers import small_scorer
from imagereward.serve import create_app
from imagereward.serve.run import server


@contextlib.contextmanager
def serving(scorers, **options):
    """Serve `scorers`, a scorer or {name: scorer}, in a thread; yields the address."""
    if not isinstance(scorers, dict):
        scorers = {scorers.name: scorers}
    running = server(create_app(scorers, **options), "127.0.0.1", 0)
    running.config.log_level = "critical"
    running.config.configure_logging()
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        wait_until(lambda: running.started or not thread.is_alive())
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()


def client(url: str, **options) -> httpx2.Client:
    return httpx2.Client(base_url=url, timeout=30, **options)


def wait_until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


class Gate:
    """A scorer whose image encoder waits until the gate is opened; `batches` are the sizes of its batches."""

    def __init__(self, kind: str = "CLIP"):
        self.scorer = small_scorer(kind)
        self.batches: list[int] = []
        self._open = threading.Event()
        encode = self.scorer.encode_images

        def gated(pixels):
            self.batches.append(len(pixels))
            assert self._open.wait(60)
            return encode(pixels)

        self.scorer.encode_images = gated

    def open(self) -> None:
        self._open.set()


def png(picture) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def metric(url: str, line: str, **options) -> float:
    """The value of the metric in the given line of /metrics; 0 if that line is missing."""
    text = client(url, **options).get("/metrics").text
    return next(
        (float(row.rsplit(" ", 1)[1]) for row in text.splitlines() if row.startswith(line + " ")), 0.0
    )
