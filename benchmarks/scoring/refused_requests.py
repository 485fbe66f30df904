"""Benchmark of a reward server under requests that it refuses: its memory, and its answers to other clients.

    python -m benchmarks.scoring.refused_requests [--requests 200]

`memory` sends N requests of each kind in `KINDS`, four at a time, and measures the server's resident memory
before, at its peak, and after. The bodies have up to 65 MiB; parsed, many would take ten times that.
`strangers` holds connections without a token and with half a request, while a client with the token asks.
The server is `imagereward serve -m ImageReward-tiny`. Writes results/refused-requests.json.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import PIL.Image
import torch

from benchmarks.lib import record
from benchmarks.scoring.serve import resident_mib

MB = 10**6
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
NPY = {"Content-Type": "application/x-npy"}
# (path, headers, body, status of the answer)
Kind = tuple[str, dict[str, str], bytes, int]
AT_A_TIME = 4
TRIM = 1.5  # seconds after which a server has given back what it freed
STRANGERS = 1500
TOKEN = "t0ken"


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
EMPTY = b"{}," * (10 * MB)

KINDS: dict[str, Callable[[], Kind]] = {
    "a form whose pairs are ten million {}": lambda: (
        "/v1/score", FORM,
        form(part("prompts", b"a"), part("images", IMAGE, FILE), part("pairs", b"[" + EMPTY + b"{}]")),
        413,
    ),
    "JSON whose pairs are ten million {}": lambda: (
        "/v1/score", JSON,
        b'{"prompts": ["a"], "images": ["AAAA"], "pairs": [' + EMPTY + b"{}]}",
        413,
    ),
    "JSON of ten million empty images": lambda: (
        "/v1/rank", JSON, asking(b"[" + b'"",' * (10 * MB) + b'""]'), 413,
    ),
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


@contextlib.contextmanager
def command(**environment: str) -> Iterator[tuple[str, int]]:
    """(address, process id) of the command, once it listens."""
    arguments = ["-m", "imagereward", "serve", "--port", "0", "-m", "ImageReward-tiny"]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    variables = {**os.environ, "PYTHONPATH": paths, **environment}
    process = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True, env=variables)
    assert process.stderr is not None
    log = []
    try:
        for line in process.stderr:
            log.append(line)
            if found := re.search(r"running on (\S+)", line):
                threading.Thread(target=process.stderr.read, daemon=True).start()
                yield found[1], process.pid
                return
        raise RuntimeError("".join(log))
    finally:
        process.terminate()
        process.wait()


def peak_mib(pid: int, reset: bool = False) -> float:
    """The most memory that a process has held since the last `reset`, in MiB."""
    if reset:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def refused(http: httpx2.Client, kind: Kind, count: int) -> list[int]:
    """Send `count` requests of one kind, four at a time; returns the statuses of their answers."""
    path, headers, body, _ = kind

    def ask(_: int) -> int:
        try:
            return http.post(path, headers=headers, content=body).status_code
        except httpx2.TransportError:
            return 0  # the answer was lost: the server closes a connection whose body it will not read

    with ThreadPoolExecutor(AT_A_TIME) as threads:
        return list(threads.map(ask, range(count)))


def scored(http: httpx2.Client, count: int) -> list[float]:
    """Seconds of each of `count` ordinary requests in sequence; RuntimeError for one without an answer."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        answer = http.post("/score", json={"prompt": "a", "image_base64": base64.b64encode(IMAGE).decode()})
        if answer.status_code != 200:
            raise RuntimeError(f"an ordinary request was answered {answer.status_code}: {answer.text}")
        times.append(time.perf_counter() - start)
    return times


def memory(count: int) -> dict:
    """A row for each kind: statuses, milliseconds per request, and the server's MiB before, at peak, after.

    Also the server's MiB before the first and after the last kind.
    """
    rows = []
    with command() as (url, pid), httpx2.Client(base_url=url, timeout=300) as http:
        # What a server holds once it has been used: threads, buffers of the libraries, pages of the model.
        scored(http, 100)
        with ThreadPoolExecutor(AT_A_TIME) as threads:
            list(threads.map(lambda _: scored(http, 25), range(AT_A_TIME)))
        time.sleep(TRIM)
        start_mib = resident_mib(pid)
        for name, make in KINDS.items():
            kind = make()
            scored(http, 20)
            time.sleep(TRIM)
            before = resident_mib(pid)
            peak_mib(pid, reset=True)
            start = time.perf_counter()
            statuses = refused(http, kind, count)
            seconds, peak = time.perf_counter() - start, peak_mib(pid)
            time.sleep(TRIM)
            row = {
                "kind": name,
                "body_mb": len(kind[2]) / MB,
                "requests": count,
                "status": kind[3],
                "others": sum(status != kind[3] for status in statuses),
                "ms": 1000 * seconds / count,
                "before_mib": before,
                "peak_mib": peak,
                "after_mib": resident_mib(pid),
            }
            print(row, file=sys.stderr)
            rows.append(row)
        scored(http, 100)
        time.sleep(TRIM)
        return {"start_mib": start_mib, "end_mib": resident_mib(pid), "kinds": rows}


def half_sent(url: str, path: str, count: int) -> list[socket.socket]:
    """Open connections without a token that send the head of a request for `path` and half of its body."""
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\n".encode()
    opened = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=30)
        opened.append(connection)
        with contextlib.suppress(OSError):  # closed on us
            connection.sendall(head + b"x" * 60_000)
    return opened


def strangers(count: int) -> list[dict]:
    """A row for each path: times of a client with the token, beside `count` half-sent requests without."""
    rows = []
    with command(IMAGEREWARD_TOKEN=TOKEN) as (url, pid):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx2.Client(base_url=url, timeout=300, headers=headers) as http:
            alone = scored(http, 50)
            for path in ("/health", "/v1/rank"):
                before = resident_mib(pid)
                opened = half_sent(url, path, count)
                try:
                    times = scored(http, 50)
                    held = resident_mib(pid)
                finally:
                    for connection in opened:
                        connection.close()
                rows.append(
                    {
                        "path": path,
                        "connections": count,
                        "answered": len(times),
                        "alone_ms": 1000 * float(np.median(alone)),
                        "ms": 1000 * float(np.median(times)),
                        "slowest_ms": 1000 * max(times),
                        "memory_mib": held - before,
                    }
                )
                print(rows[-1], file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=200, help="of each kind")
    parser.add_argument("--strangers", type=int, default=STRANGERS, help="connections without a token")
    record.add_option(parser)
    arguments = parser.parse_args()
    record.refuse_changes(arguments.allow_changes)
    result = {
        "environment": record.environment(torch.device("cpu")),
        "strangers": strangers(arguments.strangers),
        "memory": memory(arguments.requests),
    }
    print(record.write("refused-requests", result))


if __name__ == "__main__":
    main()
