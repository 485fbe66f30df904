"""A server's memory after requests that it refuses: what it was before them. The command itself is asked."""

import time

import httpx2
import pytest
from conftest import pictures

from benchmarks.lib.serving import base64_of, png, wait_until
from benchmarks.scoring.refused_requests import KINDS, command, peak_mib, refused, scored
from benchmarks.scoring.serve import resident_mib

MORE = 1.1  # times what it was
REQUESTS = 6


@pytest.fixture(scope="module")
def server():
    """(client, process id, MiB that it holds once it has scored)."""
    with command() as (url, pid), httpx2.Client(base_url=url, timeout=120) as http:
        scored(http, 50)
        yield http, pid, resident_mib(pid)


@pytest.mark.parametrize("name", KINDS)
def test_a_refused_request_leaves_no_memory_behind(server, name):
    http, pid, before = server
    kind = KINDS[name]()
    peak_mib(pid, reset=True)
    assert refused(http, kind, REQUESTS) == [kind[3]] * REQUESTS
    # Four at a time, each as its bytes, as text and as an image: not the objects that it would parse to.
    assert peak_mib(pid) - before < 4 * 4 * len(kind[2]) / 2**20 + 100
    wait_until(lambda: resident_mib(pid) < MORE * before)
    scored(http, 1)


def test_large_requests_that_are_answered_leave_none_either(server):
    http, pid, before = server
    large = base64_of(png(pictures(1)[0].resize((3000, 3000))))
    for _ in range(REQUESTS):
        answer = http.post("/v1/rank", json={"prompt": "a", "images": [large] * 4})
        assert answer.status_code == 200, answer.text
    wait_until(lambda: resident_mib(pid) < MORE * before)


def test_clients_that_leave_in_the_middle_of_a_body_leave_none(server):
    http, pid, before = server

    def cut_short():
        for _ in range(300):
            yield b"x" * 100_000
        raise ConnectionAbortedError

    for _ in range(REQUESTS):
        with pytest.raises(ConnectionAbortedError):
            http.post("/v1/rank", content=cut_short(), headers={"Content-Type": "application/json"})
    time.sleep(1)
    wait_until(lambda: resident_mib(pid) < MORE * before)
    scored(http, 1)
