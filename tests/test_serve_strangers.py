"""Who has not shown the token takes no place, no memory and no connection from who has."""

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import pictures, small_scorer

from benchmarks.lib.serving import Gate, base64_of, client, metric, png, serving, wait_until
from imagereward.scoring.functions import FunctionScorer
from imagereward.serve import Limits

TOKEN = {"Authorization": "Bearer s3cret"}
REQUEST = {"prompt": "a", "images": [base64_of(png(pictures(1)[0]))]}
HALF = [
    b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000\r\n",
    b"PUT /docs HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n",
    b"POST /v1/rank HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n",
    b"POST /v1/rank HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer no\r\nContent-Length: 1000000\r\n\r\n",
    b"POST /v1/matrix HTTP/1.1\r\nHost: a\r\nContent-Le",
    b"",
]


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=30)


@contextlib.contextmanager
def strangers(url: str, beginnings: list[bytes]):
    """Connections that each send a beginning, as much of a body as is taken, and then wait."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connect(url)) for _ in beginnings]
        for connection, beginning in zip(opened, beginnings):
            with contextlib.suppress(OSError):  # cut, or answered and closed
                connection.sendall(beginning + (b"x" * 2**16 if beginning.endswith(b"\r\n") else b""))
        yield opened


def ended(connection: socket.socket) -> bool:
    """Whether the server has ended the connection; waits for it."""
    try:
        while connection.recv(2**16):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize("beginning", HALF)
def test_requests_without_the_token_that_are_half_sent_fill_no_queue(beginning):
    limits = Limits(queue=4, images=2, body=2**20, held=2**20)
    with (
        serving(small_scorer("CLIP"), token="s3cret", limits=limits) as url,
        strangers(url, [beginning] * 40),
        client(url, headers=TOKEN) as http,
    ):
        for _ in range(5):
            assert http.post("/v1/rank", json=REQUEST).status_code == 200
        assert metric(url, "imagereward_queue_images", headers=TOKEN) == 0


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/health", {}, 405),
        ("GET", "/health", {}, 200),
        ("GET", "/openapi.json", {}, 200),
        ("POST", "/v1/rank", {}, 401),
        ("POST", "/score", {"Authorization": "Bearer wrong"}, 401),
        ("POST", "/no/such/path", {}, 401),
        ("POST", "/v1/models", TOKEN, 405),
        ("POST", "/metrics", TOKEN, 405),
    ],
)
def test_a_body_that_nobody_asked_for_is_not_taken(method, path, headers, status):
    sent = 0

    def endless():
        nonlocal sent
        while sent < 400 * 2**20:
            sent += 2**16
            yield b"x" * 2**16

    with serving(small_scorer("CLIP"), token="s3cret") as url:
        answer = client(url).request(method, path, content=endless(), headers=headers)
        assert answer.status_code == status, answer.text
    assert sent < 50 * 2**20


def test_of_connections_without_the_token_the_oldest_are_closed_and_others_keep_theirs():
    limits = Limits(unauthenticated=8, unauthenticated_seconds=600)
    with serving(small_scorer("CLIP"), token="s3cret", limits=limits) as url, client(url) as http:
        assert http.post("/v1/rank", json=REQUEST, headers=TOKEN).status_code == 200
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(connect(url)) for _ in range(30)]
            for connection in opened[:22]:
                assert ended(connection)
            opened[-1].sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert opened[-1].recv(100).startswith(b"HTTP/1.1 200")
            for _ in range(3):  # on the connection that has shown the token, and on new ones
                assert http.post("/v1/rank", json=REQUEST, headers=TOKEN).status_code == 200
                assert client(url).post("/v1/rank", json=REQUEST, headers=TOKEN).status_code == 200


@pytest.mark.parametrize("beginning", [HALF[0], HALF[2], HALF[4], HALF[6], b"G", b""])
def test_a_connection_that_does_not_show_the_token_ends(beginning):
    limits = Limits(unauthenticated_seconds=1)
    with (
        serving(small_scorer("CLIP"), token="s3cret", limits=limits) as url,
        strangers(url, [beginning]) as (connection,),
    ):
        assert ended(connection)


def test_a_stranger_who_dribbles_headers_is_cut_off():
    limits = Limits(unauthenticated_seconds=1)
    with serving(small_scorer("CLIP"), token="s3cret", limits=limits) as url, connect(url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")

        def dribble() -> None:
            for number in range(600):
                connection.sendall(f"A{number}: b\r\n".encode())
                time.sleep(0.05)

        with pytest.raises(ConnectionError):
            dribble()


def test_who_has_shown_the_token_may_wait_longer_for_body_and_answer():
    gate = Gate()
    body = client("http://a").build_request("POST", "/v1/rank", json=REQUEST).read()
    head = b"POST /v1/rank HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer s3cret\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with (
        serving(gate.scorer, token="s3cret", limits=Limits(unauthenticated_seconds=1)) as url,
        connect(url) as slow,
        ThreadPoolExecutor(1) as threads,
    ):
        slow.sendall(head + body[:50])
        asked = threads.submit(client(url).post, "/v1/rank", json=REQUEST, headers=TOKEN)
        wait_until(lambda: gate.batches)
        time.sleep(2.5)
        slow.sendall(body[50:])
        threading.Timer(1.5, gate.open).start()
        assert asked.result().status_code == 200
        assert slow.recv(100).startswith(b"HTTP/1.1 200")


def test_places_are_free_again_after_a_request_that_is_refused_in_any_way():
    limits = Limits(queue=2, images=2, body=2**20, held=2**20, seconds=1)
    with serving(small_scorer("CLIP"), token="s3cret", limits=limits) as url, client(url) as http:
        for _ in range(4):
            assert http.post("/v1/rank", json={}, headers=TOKEN).status_code == 422
            assert http.post("/v1/rank", content=b"{", headers=TOKEN).status_code == 415
            assert http.post("/v1/rank", content=b"x" * 2**21, headers=TOKEN).status_code == 413
            with connect(url) as slow:  # 408
                slow.sendall(HALF[4].replace(b"1000000", b"1000\r\nAuthorization: Bearer s3cret"))
                assert slow.recv(100).startswith(b"HTTP/1.1 408")
        two = {**REQUEST, "images": REQUEST["images"] * 2}
        assert http.post("/v1/rank", json=two, headers=TOKEN).status_code == 200


def test_the_second_of_two_requests_in_one_write_is_answered_however_long_it_takes():
    calls = []

    def slow(pixels, prompts):
        if calls:
            time.sleep(2.5)  # over the seconds that a connection without an admitted request has
        calls.append(len(pixels))
        return pixels.mean((1, 2, 3))

    limits = Limits(unauthenticated_seconds=1)
    with serving(FunctionScorer(slow), limits=limits, batch_size=1) as url, connect(url) as both:
        body = json.dumps(REQUEST).encode()
        head = "POST /v1/rank HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}"
        both.sendall((head.encode() + b"\r\n\r\n" + body) * 2)
        answers = b""
        while answers.count(b"HTTP/1.1 200") < 2 and (more := both.recv(2**16)):
            answers += more
    assert answers.count(b"HTTP/1.1 200") == 2
