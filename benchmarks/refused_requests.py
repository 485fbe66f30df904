"""Requests that a reward server refuses, large ones: what would take many times its bytes if it were parsed.

Each kind is (path, headers, body, status). The bodies are up to 30 MB, as a server with default limits takes.
"""

import base64
import io
import json
from collections.abc import Callable

import numpy as np
import PIL.Image

MB = 10**6
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
NPY = {"Content-Type": "application/x-npy"}
Kind = tuple[str, dict[str, str], bytes, int]


def png(side: int) -> bytes:
    """A picture of noise, which PNG cannot compress."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def part(name: str, value: bytes, more: str = "") -> bytes:
    """One field of a form."""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    """The body of a form."""
    return b"".join(parts) + b"--b--\r\n"


def asking(text: bytes) -> bytes:
    """A JSON body with `text` as its images."""
    return b'{"prompt": "a", "images": ' + text + b"}"


def npy_header(shape: str) -> bytes:
    """The beginning of an .npy file."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


IMAGE = png(64)
LARGE = base64.b64encode(png(2000)).decode()  # 16 MB
FILE = '; filename="a.png"'

KINDS: dict[str, Callable[[], Kind]] = {
    "a form whose pairs are ten million {}": lambda: (
        "/v1/score", FORM,
        form(part("prompts", b"a"), part("images", IMAGE, FILE), part("pairs", b"[" + b"{}," * (10 * MB) + b"{}]")),
        413,
    ),
    "JSON whose pairs are ten million {}": lambda: (
        "/v1/score", JSON,
        b'{"prompts": ["a"], "images": ["AAAA"], "pairs": [' + b"{}," * (10 * MB) + b"{}]}",
        413,
    ),
    "JSON of ten million empty images": lambda: ("/v1/rank", JSON, asking(b"[" + b'"",' * (10 * MB) + b'""]'), 413),
    "JSON of a million unknown fields": lambda: (
        "/score", JSON, json.dumps(dict.fromkeys(map(str, range(MB)))).encode(), 413,
    ),
    "JSON of fifteen million lists within each other": lambda: (
        "/v1/rank", JSON, asking(b"[" * (15 * MB) + b"]" * (15 * MB)), 413,
    ),
    "JSON of a prompt of 30 MB": lambda: (
        "/score", JSON, json.dumps({"prompt": "a" * (30 * MB), "image_base64": ""}).encode(), 413,
    ),
    "JSON of a prompt of escapes": lambda: (
        "/score", JSON, b'{"prompt": "' + b"\\ud83d\\ude00" * (2 * MB) + b'"}', 413,
    ),
    "JSON of quotation marks": lambda: ("/score", JSON, b'{"prompt": "' + b'\\"' * (15 * MB) + b'"}', 413),
    "JSON of a number of 30 MB": lambda: ("/score", JSON, b'{"prompt": ' + b"1" * (30 * MB) + b"}", 400),
    "JSON of white space": lambda: ("/score", JSON, b" " * (30 * MB), 400),
    "JSON with a large image, and a field too many": lambda: (
        "/v1/rank", JSON, json.dumps({"prompt": "a", "images": [LARGE], "colour": "red"}).encode(), 422,
    ),
    "JSON with a large image that is cut short": lambda: (
        "/v1/rank", JSON, json.dumps({"prompt": "a", "images": [LARGE[: 8 * MB]]}).encode(), 422,
    ),
    "a form with a prompt of 30 MB": lambda: ("/v1/rank", FORM, form(part("prompt", b"a" * (30 * MB))), 413),
    "a form with pairs that are not UTF-8": lambda: (
        "/v1/score", FORM, form(part("pairs", b"\xff" * MB)), 400,
    ),
    "a form of a hundred thousand parts": lambda: (
        "/v1/matrix", FORM, form(part("prompts", b"a") * 100_000), 413,
    ),
    "a form with a large file that is no image": lambda: (
        "/v1/rank", FORM, form(part("prompt", b"a"), part("images", b"x" * (30 * MB), FILE)), 422,
    ),
    "a form that is cut short": lambda: (
        "/v1/rank", FORM, part("prompt", b"a") + part("images", b"x" * (30 * MB), FILE), 400,
    ),
    "an array of a shape that is not there": lambda: (
        "/v1/rank?prompt=a", NPY, npy_header("(1000000, 1000000, 1000000, 3)") + bytes(30 * MB), 400,
    ),
    "an array of ten million images": lambda: (
        "/v1/rank?prompt=a", NPY, npy_header("(10000000, 1, 1, 3)") + bytes(30 * MB), 413,
    ),
    "a body in another format": lambda: ("/v1/rank", {"Content-Type": "text/plain"}, b"x" * (30 * MB), 415),
    "a body that is too large": lambda: ("/v1/rank", JSON, b" " * (65 * 2**20), 413),
}  # fmt: skip
