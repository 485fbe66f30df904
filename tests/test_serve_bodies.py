"""Bodies that no honest client sends: each is turned away with a reason, and the server goes on."""

import gzip
import io
import json
import random
import socket
import struct
import zlib

import httpx2
import numpy as np
import PIL.Image
import pytest
from conftest import pictures, small_scorer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.lib.serving import base64_of, client, npy, png, serving
from imagereward.serve import Limits

LIMITS = Limits(
    body=2**20,
    images=4,
    prompts=3,
    pairs=6,
    characters=100,
    image_pixels=10_000,
    request_pixels=25_000,
    seconds=2,
)
PNG = png(pictures(1)[0])
IMAGE = base64_of(PNG)
JSON, NPY = {"Content-Type": "application/json"}, {"Content-Type": "application/x-npy"}
VERBS = ("/v1/score", "/v1/rank", "/v1/matrix", "/score")


@pytest.fixture(scope="module")
def url():
    scorer = small_scorer("CLIP")
    with serving(scorer, limits=LIMITS) as url:
        yield url
        # After all of it, the server answers as ever.
        answer = client(url).post("/v1/rank", json={"prompt": "a", "images": [IMAGE]})
        assert answer.json()["scores"] == pytest.approx([scorer.score("a", PNG)], abs=1e-6)


def refused(answer, status: int, reason: str) -> None:
    assert (answer.status_code, reason in answer.text) == (status, True), answer.text
    assert isinstance(answer.json()["detail"], str)


def header_of(shape, dtype="|u1", order=False) -> bytes:
    text = f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that say they are many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def saved_as(format: str) -> bytes:
    buffer = io.BytesIO()
    pictures(1)[0].save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b'{"prompt": "\\ud800", "images": []}', 400, "not JSON"),
        (b"[" * 10_000, 413, "more than 8 lists or objects within each other"),
        (b"[" * 8, 400, "not JSON"),
        (b"[]", 422, "object"),
        (b"null", 422, "object"),
        (b"{}", 422, "images: Field required"),
        (b'{"prompt": 1, "images": ["' + IMAGE.encode() + b'"]}', 422, "prompt: Input should be a"),
        (b'{"prompt": "a", "images": []}', 422, "at least 1"),
        (b'{"prompt": "a", "images": "a.png"}', 422, "images: Input should be a valid array"),
        (b'{"prompt": "a", "images": [1]}', 422, "images[0]: is a int"),
        (b'{"prompt": "a", "images": ["/etc/passwd"]}', 422, "images[0] is no image"),
        (b'{"prompt": "a", "images": ["http://127.0.0.1/a.png"]}', 422, "images[0]: is not base64"),
        (b'{"prompt": "a", "images": [""]}', 422, "images[0] is empty"),
        (b'{"prompt": "a", "images": ["AAAA"], "promt": "a"}', 422, "promt: Extra inputs"),
        (json.dumps({"prompt": "a", "images": [IMAGE], "model": "Clip"}).encode(), 404, "there are: CLIP"),
        (json.dumps({"prompt": "a", "images": [IMAGE], "model": ["CLIP"]}).encode(), 422, "model"),
        (json.dumps({"prompt": "a", "images": [IMAGE] * 5}).encode(), 413, "5 images in one request"),
        (json.dumps({"prompt": "a" * 101, "images": [IMAGE]}).encode(), 413, "101 characters"),
        (b'{"prompt": "a", "images": [' + b"," * 500_000 + b"]}", 413, "more than 153 values"),
        (json.dumps(dict.fromkeys(map(str, range(200)))).encode(), 413, "more than 64 names of fields"),
        (json.dumps(dict.fromkeys(map(str, range(60)))).encode(), 422, "(+59 more)"),
        (b'{"prompt": "a", "prompt": "b", "images": ["AAAA"]}', 422, "prompt: given twice"),
        (b'{"prompt": "a", "pro\\u006dpt": "b", "images": ["AAAA"]}', 422, "prompt: given twice"),
    ],
)  # fmt: skip
def test_json_that_is_wrong_is_refused_with_the_reason(url, body, status, reason):
    refused(client(url).post("/v1/rank", content=body, headers=JSON), status, reason)


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ({"prompts": ["a"] * 3}, 422, "3 prompts and 2 images"),
        ({"prompts": ["a"] * 4}, 413, "4 prompts"),
        ({"prompts": ["a"], "pairs": [[2, 0]]}, 422, "pairs[0] is [2, 0]"),
        ({"prompts": ["a"], "pairs": [[0, 0], [0, 1]]}, 422, "pairs[1] is [0, 1]"),
        ({"prompts": ["a"], "pairs": [[-1, 0]]}, 422, "greater than or equal to 0"),
        ({"prompts": ["a"], "pairs": [[0.0, 0]]}, 422, "pairs[0][0]"),
        ({"prompts": ["a"], "pairs": [[True, 0]]}, 422, "pairs[0][0]"),
        ({"prompts": ["a"], "pairs": [[10**30, 0]]}, 422, "pairs[0]"),
        ({"prompts": ["a"], "pairs": [[0]]}, 422, "pairs[0]"),
        ({"prompts": ["a"], "pairs": []}, 422, "at least 1"),
        ({"prompts": ["a"], "pairs": [[0, 0]] * 7}, 413, "7 pairs"),
        ({"prompts": ["a", None]}, 422, "prompts[1]"),
        ({"prompts": []}, 422, "at least 1"),
    ],
)
def test_rows_that_cannot_be_are_refused(url, fields, status, reason):
    request = {"images": [IMAGE, IMAGE], **fields}
    refused(client(url).post("/v1/score", json=request), status, reason)


@pytest.mark.parametrize(
    ("image", "status", "reason"),
    [
        (b"", 422, "is empty: 0 bytes"),
        (b"x" * 1000, 422, "is no image"),
        (PNG[:300], 422, "damaged"),
        (PNG[:40] + bytes(len(PNG) - 40), 422, "images[1]"),
        (huge_png(60_000, 60_000), 422, "too many pixels"),
        (huge_png(9_000, 9_000), 413, "9000 x 9000 pixels"),
        (huge_png(0, 10), 422, "images[1]"),
        (png(PIL.Image.new("RGB", (101, 100))), 413, "101 x 100 pixels"),
        (png(PIL.Image.new("RGB", (3500, 1))), 413, "3500 x 1 pixels would be resized to"),
        (saved_as("EPS"), 422, "is no image in a format that is read here"),
        (saved_as("PCX"), 422, "is no image in a format that is read here"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "is no image"),
        (b"\x93NUMPY", 400, "no .npy file"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(url, image, status, reason):
    answer = client(url).post("/v1/rank", data={"prompt": "a"}, files=[("images", PNG), ("images", image)])
    refused(answer, status, reason)
    if status == 422:
        assert list(answer.json()["images"]) == ["1"]


def test_too_many_pixels_in_all_are_refused(url):
    files = [("images", png(PIL.Image.new("RGB", (100, 90))))] * 3
    refused(
        client(url).post("/v1/rank", data={"prompt": "a"}, files=files), 413, "25000 pixels in one request"
    )


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "no .npy file"),
        (b"PK\x03\x04" + b"\0" * 100, 400, "no .npy file"),
        (b"\x80\x04\x95.", 400, "no .npy file"),
        (npy(np.zeros((1, 8, 8, 3), np.float32)), 400, "float32"),
        (npy(np.array([{"a": 1}], dtype=object)), 400, "expected uint8"),
        (npy(np.asfortranarray(np.zeros((2, 8, 8, 3), np.uint8))), 400, "Fortran"),
        (npy(np.zeros((8, 8), np.uint8)), 400, "(8, 8)"),
        (npy(np.zeros((0, 8, 8, 3), np.uint8)), 400, "(0, 8, 8, 3)"),
        (npy(np.zeros((2, 8, 8, 3), np.uint8))[:-1], 400, "383 follow it"),
        (npy(np.zeros((2, 8, 8, 3), np.uint8)) + b"x", 400, "385 follow it"),
        (npy(np.zeros((5, 8, 8, 3), np.uint8)), 413, "5 images"),
        (npy(np.zeros((1, 8, 8, 2), np.uint8)), 422, "images[0]"),
        (npy(np.zeros((1, 101, 100, 3), np.uint8)), 413, "100 x 101"),
        (header_of("(1000000000000, 8, 8, 3)"), 400, "but 0 follow it"),
        (header_of(f"({10**400}, 8, 8, 3)"), 400, "follow it"),
        (header_of("(-1, -8, 8, 3)") + bytes(192), 400, "expected uint8"),
        (header_of("(1, 8, 8, 3.0)") + bytes(192), 400, "no .npy file"),
        (header_of("(1, 8, 8, 3)", "|O") + bytes(192), 400, "expected uint8"),
        (header_of("(" * 900), 400, "no .npy file"),
        (header_of("__import__('os').system('true')"), 400, "no .npy file"),
        (header_of("(1, 8, 8, 3)" + " " * 5000) + bytes(192), 400, "no .npy file"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", 400, "no .npy file"),
        (b"\x93NUMPY\x03\x00" + npy(np.zeros((1, 8, 8, 3), np.uint8))[8:], 400, "no .npy file"),
    ],
)
def test_an_array_that_is_wrong_is_refused(url, body, status, reason):
    refused(client(url).post("/v1/rank", params={"prompt": "a"}, content=body, headers=NPY), status, reason)


def test_prompts_of_an_array_come_from_the_query_and_only_once_where_one_is_asked(url):
    body = npy(np.zeros((1, 8, 8, 3), np.uint8))
    refused(client(url).post("/v1/rank", content=body, headers=NPY), 422, "prompt: Field required")
    query = {"prompt": ["a", "b"]}
    refused(client(url).post("/v1/rank", params=query, content=body, headers=NPY), 422, "prompt: given twice")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "cut short"),
        (b"--b\r\n", "cut short"),
        (b"no boundary", "cannot be read"),
        (b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na', "cut short"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\na\r\n--b--\r\n", ""),
        (b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--b--\r\n', "not UTF-8"),
        pytest.param(b"--b\r\n" + b"x" * 10**5, "cannot be read", id="endless header"),
        (b"--b\r\nContent-Disposition: form-data\r\nContent-Transfer-Encoding: x\r\n\r\na\r\n--b--", ""),
    ],
)
def test_a_form_that_is_wrong_is_refused(url, body, reason):
    answer = client(url).post(
        "/v1/rank", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert answer.status_code in (400, 422), answer.text
    assert reason in answer.json()["detail"]


def test_a_form_of_countless_parts_is_refused(url):
    part = b'--b\r\nContent-Disposition: form-data; name="prompts"\r\n\r\na\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    refused(client(url).post("/v1/matrix", content=part * 5000, headers=headers), 413, "parts in one form")


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/x-pickle", "application/octet-stream", "multipart/mixed"]
)
def test_other_formats_are_refused(url, content_type):
    answer = client(url).post("/v1/rank", content=b"x", headers={"Content-Type": content_type})
    refused(answer, 415, "Content-Type")
    refused(client(url).post("/score", content=b"x", headers={"Content-Type": content_type}), 415, "json")


def test_a_multipart_without_boundary_or_with_a_hostile_one_is_refused(url):
    for boundary in ("", "; boundary=", "; boundary=" + "b" * 5000, '; boundary="'):
        headers = {"Content-Type": "multipart/form-data" + boundary}
        refused(client(url).post("/v1/rank", content=b"--b--", headers=headers), 400, "form")


def test_compressed_bodies_are_refused(url):
    body = gzip.compress(b" " * 10**7)
    headers = {**JSON, "Content-Encoding": "gzip"}
    refused(client(url).post("/v1/rank", content=body, headers=headers), 415, "compressed")


def test_other_methods_and_paths_are_refused(url):
    assert client(url).get("/v1/rank").status_code == 405
    assert client(url).delete("/v1/rank").status_code == 405
    assert client(url).post("/../etc/passwd").status_code == 404
    assert client(url).get("/page.html").status_code == 404


def raw(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=20)


def test_a_body_is_bounded_while_it_streams_not_after(url):
    sent = 0

    def endless():
        nonlocal sent
        while sent < 200 * 2**20:
            sent += 2**16
            yield b"x" * 2**16

    refused(client(url).post("/v1/rank", content=endless(), headers=JSON), 413, "larger than 1048576 bytes")
    assert sent < 50 * 2**20  # what sockets hold, not what a client would send


@pytest.mark.parametrize("length", [b"99999999999", b"9" * 5000, b"-1", b"1e3", b"0x10"])
def test_lengths_that_cannot_be_are_refused(url, length):
    with raw(url) as connection:
        connection.sendall(b"POST /v1/rank HTTP/1.1\r\nHost: a\r\nContent-Length: " + length + b"\r\n\r\n")
        assert connection.recv(100).split()[1] in (b"400", b"413")


def test_a_body_that_dribbles_in_is_cut_off(url):
    with raw(url) as connection:
        connection.sendall(b"POST /v1/rank HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
        assert connection.recv(100).split()[1] == b"408"


def test_bytes_that_are_no_http_are_refused(url):
    for data in (
        b"\0" * 1000,
        b"GET\r\n\r\n",
        b"\x16\x03\x01" + b"x" * 500,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
    ):
        with raw(url) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(100)[:12] in (b"HTTP/1.1 400", b"")
            except ConnectionError:
                pass  # closed on us: as good an answer


def valid_bodies() -> list[tuple[str, dict, bytes]]:
    """(path, headers, body) of one request of each kind that is answered with scores."""
    requests = [
        ("/v1/rank", {"json": {"prompt": "a", "images": [IMAGE]}}),
        ("/v1/score", {"json": {"prompts": ["a"], "images": [IMAGE], "pairs": [[0, 0]], "model": "CLIP"}}),
        ("/score", {"json": {"prompt": "a", "image_base64": IMAGE}}),
        ("/v1/matrix", {"data": {"prompts": ["a", "b"]}, "files": [("images", PNG)]}),
        ("/v1/rank", {"data": {"prompt": "a"}, "files": [("images", saved_as("JPEG"))]}),
        ("/v1/rank", {"data": {"prompt": "a"}, "files": [("images", saved_as("WEBP"))]}),
        ("/v1/rank", {"data": {"prompt": "a"}, "files": [("images", saved_as("TIFF"))]}),
        ("/v1/rank", {"data": {"prompt": "a"}, "files": [("images", saved_as("GIF"))]}),
    ]
    made = [(path, httpx2.Request("POST", "http://a" + path, **request)) for path, request in requests]
    bodies = [(path, {"Content-Type": made.headers["content-type"]}, made.read()) for path, made in made]
    return [*bodies, ("/v1/rank?prompt=a", NPY, npy(np.zeros((1, 8, 8, 3), np.uint8)))]


def test_valid_bodies_damaged_at_random_never_break_the_server(url):
    rng = random.Random(0)
    with client(url) as http:
        for path, headers, body in valid_bodies():
            assert http.post(path, content=body, headers=headers).status_code == 200
            for _ in range(40):
                damaged = bytearray(body)
                for _ in range(rng.choice([1, 2, 20])):
                    damaged[rng.randrange(len(damaged))] = rng.randrange(256)
                start, end = sorted(rng.randrange(len(damaged)) for _ in range(2))
                cut = rng.choice([damaged, damaged[:end], damaged[:start] + damaged[end:], damaged + damaged])
                answer = http.post(path, content=bytes(cut), headers=headers)
                assert answer.status_code < 500, (path, answer.text)
                if answer.status_code != 200:
                    assert answer.json()["detail"]


def values_of(schema: dict) -> st.SearchStrategy:
    """Values that a JSON schema of the documentation allows, and now and then some that it does not."""
    kinds = {
        "string": st.sampled_from([IMAGE, IMAGE[:50], "CLIP", ""]) | st.text(max_size=120),
        "integer": st.integers(-2, 5) | st.integers(),
        "null": st.none(),
    }
    if "anyOf" in schema:
        wanted = st.one_of([values_of(each) for each in schema["anyOf"]])
    elif schema.get("type") == "array" and "prefixItems" in schema:
        wanted = st.tuples(*map(values_of, schema["prefixItems"])).map(list)
    elif schema.get("type") == "array":
        wanted = st.lists(values_of(schema["items"]), max_size=5)
    elif schema.get("type") == "object":
        fields = {name: values_of(each) for name, each in schema["properties"].items()}
        wanted = st.fixed_dictionaries({}, optional=fields) | st.fixed_dictionaries(fields)
    else:
        wanted = kinds[schema["type"]]
    anything = (
        st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
    )
    return st.integers(0, 9).flatmap(lambda draw: anything if draw == 0 else wanted)


@pytest.mark.parametrize("path", VERBS)
def test_bodies_drawn_from_the_documented_schema_never_break_the_server(url, path):
    body = client(url).get("/openapi.json").json()["paths"][path]["post"]["requestBody"]["content"]
    http = client(url)

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(values_of(body["application/json"]["schema"]))
    def ask(request):
        answer = http.post(path, content=json.dumps(request), headers=JSON)
        assert answer.status_code in (200, 400, 404, 413, 422), answer.text
        if answer.status_code != 200:
            assert answer.json()["detail"]

    ask()


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=b", "application/x-npy"])
def test_random_bytes_never_break_the_server(url, kind):
    http = client(url)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.binary(max_size=300), st.sampled_from([b"", b"--b\r\n", b"\x93NUMPY\x01\x00", b'{"images": ']))
    def ask(data, prefix):
        answer = http.post("/v1/rank?prompt=a", content=prefix + data, headers={"Content-Type": kind})
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.json()["detail"]

    ask()
