"""Benchmark of the reward server under load: throughput, CPU per request, latency, lost answers, memory.

    python -m benchmarks.scoring.serve [--requests 50000] [--images 256] [--device cuda]

The server runs in its own process. `throughput` compares 64 clients with single-image requests to offline
scoring of the same files, at full size with random weights. `cpu` measures the CPU time of a request to a
server of ImageReward-tiny, minus decoding and the model, which are measured alone. `latency` adds clients
until the server's queue is full. `answers` compares every answer of many requests with the local score, and
records the server's memory. Writes results/serve-*.json.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import multiprocessing
import os
import sys
import time
from pathlib import Path
from statistics import median

import httpx2
import numpy as np
import PIL.Image
import torch

import imagereward as RM
from benchmarks.lib import record
from benchmarks.scoring.throughput import CONFIG, PROMPTS, images
from imagereward import shapes
from imagereward.checkpoints.assembling import random_scorer

CLIENTS = 64


def scorer_of(size: str, device: str):
    """The full size, or ImageReward-tiny in float64: so that the company in a batch changes no score by as
    much as a crossed answer would."""
    if size == "full":
        return random_scorer(CONFIG, device)
    return RM.load("ImageReward-tiny", device, dtype="float64")


def shapes_pairs(images: int, prompts: int) -> tuple[list[bytes], list[str]]:
    """So many PNG files of Shapes, and so many prompts."""
    return [png(shapes.pair(index)[1]) for index in range(images)], list(map(shapes.prompt, range(prompts)))


def serve(size: str, device: str, options: dict, pipe) -> None:
    from imagereward.serve import Limits, create_app
    from imagereward.serve.run import server

    limits = Limits(**options.pop("limits", {}))
    app = create_app({"model": scorer_of(size, device)}, limits=limits, **options)
    running = server(app, "127.0.0.1", 0)
    startup = running.startup

    async def tell(*arguments, **more):
        await startup(*arguments, **more)
        pipe.send(running.servers[0].sockets[0].getsockname()[1])

    running.startup = tell
    running.config.log_level = "warning"
    running.config.configure_logging()
    running.run()


@contextlib.contextmanager
def serving(size: str, device: str, **options):
    """(address, process id) of a server in a process of its own."""
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve, args=(size, device, options, there))
    process.start()
    if not here.poll(300):
        raise RuntimeError("the server did not start")
    try:
        yield f"http://127.0.0.1:{here.recv()}", process.pid
    finally:
        process.terminate()
        process.join()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def png(picture: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


async def ask_all(url: str, bodies: list[dict], count: int, clients: int, watch=None) -> list:
    """(status, score, seconds) of `count` requests, bodies in turn; each client waits for its answer."""
    answers: list = [None] * count
    numbers = iter(range(count))

    async def one(http: httpx2.AsyncClient) -> None:
        for number in numbers:
            start = time.perf_counter()
            answer = await http.post("/score", json=bodies[number % len(bodies)])
            score = answer.json().get("score", np.nan)
            answers[number] = (answer.status_code, score, time.perf_counter() - start)
            if watch is not None:
                watch(number)

    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        await asyncio.gather(*(one(http) for _ in range(clients)))
    return answers


def bodies_of(encoded: list[bytes], prompts: list[str]) -> list[dict]:
    """One request for each image, prompts in turn."""
    return [
        {"image_base64": base64.b64encode(data).decode(), "prompt": prompts[index % len(prompts)]}
        for index, data in enumerate(encoded)
    ]


def throughput(count: int, device: str, rounds: int) -> dict:
    """Images per second of 64 clients, beside one call of `score_pairs` on the same files."""
    encoded = [png(picture) for picture in images(count)]
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(count)]
    scorer = scorer_of("full", device)
    bodies = bodies_of(encoded, PROMPTS)
    offline, online = [], []
    with serving("full", device) as (url, _):
        asyncio.run(ask_all(url, bodies, min(count, CLIENTS), CLIENTS))
        scorer.score_pairs(prompts[:8], encoded[:8])
        for turn in range(rounds):
            start = time.perf_counter()
            expected = scorer.score_pairs(prompts, encoded)
            offline.append(count / (time.perf_counter() - start))
            start = time.perf_counter()
            answers = asyncio.run(ask_all(url, bodies, count, CLIENTS))
            online.append(count / (time.perf_counter() - start))
            np.testing.assert_allclose([score for _, score, _ in answers], expected, atol=1e-4, rtol=0)
            print(f"  round {turn}: {offline[-1]:.2f} offline, {online[-1]:.2f} served", file=sys.stderr)
    return {
        "images": count,
        "clients": CLIENTS,
        "offline_per_s": median(offline),
        "served_per_s": median(online),
        "share": median(online) / median(offline),
    }


def cpu(count: int) -> dict:
    """Milliseconds of CPU a request: in the server, and of decoding and the model alone, in equal batches."""
    encoded, prompts = shapes_pairs(CLIENTS, CLIENTS)
    with serving("tiny", "cpu", batch_size=CLIENTS) as (url, pid):
        bodies = bodies_of(encoded, prompts)
        asyncio.run(ask_all(url, bodies, CLIENTS, CLIENTS))
        before, counted = cpu_seconds(pid), batches(url)
        asyncio.run(ask_all(url, bodies, count, CLIENTS))
        spent, formed = cpu_seconds(pid) - before, batches(url) - counted
    scorer = scorer_of("tiny", "cpu")
    size = max(1, round(count / formed))
    alone = alone_seconds(scorer, (encoded * size)[:size], (prompts * size)[:size]) / size
    return {
        "requests": count,
        "images_a_batch": count / formed,
        "server_ms": 1000 * spent / count,
        "decode_and_model_ms": 1000 * alone,
        "overhead_ms": 1000 * (spent / count - alone),
    }


def batches(url: str) -> float:
    text = httpx2.get(url + "/metrics").text
    line = next(row for row in text.splitlines() if row.startswith("imagereward_batch_images_count"))
    return float(line.rsplit(" ", 1)[1])


def alone_seconds(scorer, files: list[bytes], prompts: list[str]) -> float:
    """CPU seconds of decoding N images and scoring them with N prompts, without a server."""
    pairs = torch.arange(len(files))[:, None].expand(-1, 2)
    times = []
    for _ in range(30):
        start = time.process_time()
        opened = [PIL.Image.open(io.BytesIO(data)) for data in files]
        pixels = torch.stack([scorer.preprocess.pixels(image) for image in opened])
        with torch.inference_mode():
            scorer.head(scorer.encode_pixels([pixels]), scorer.encode_prompts(prompts), pairs)
        times.append(time.process_time() - start)
    return median(times)


def latency(count: int) -> list[dict]:
    """p50 and p99 of what was answered, and the share refused, with ever more clients at a queue of 256."""
    bodies = bodies_of(*shapes_pairs(CLIENTS, CLIENTS))
    rows = []
    with serving("tiny", "cpu", limits={"queue": 256, "images": 256}) as (url, _):
        asyncio.run(ask_all(url, bodies, CLIENTS, CLIENTS))
        for clients in (1, 16, 64, 256, 512):
            answers = asyncio.run(ask_all(url, bodies, count, clients))
            seconds = [taken for status, _, taken in answers if status == 200]
            if strange := {status for status, _, _ in answers} - {200, 429}:
                raise RuntimeError(f"answers with status {strange}")
            p50, p99 = np.percentile(seconds, [50, 99]).tolist()
            refused = 1 - len(seconds) / count
            rows.append({"clients": clients, "p50_ms": 1000 * p50, "p99_ms": 1000 * p99, "refused": refused})
    return rows


def answers_of_many(count: int) -> dict:
    """How many of `count` answers were lost or are not their own, and memory along the way."""
    encoded, prompts = shapes_pairs(CLIENTS, 61)  # prime to the images
    expected = scorer_of("tiny", "cpu").score_matrix(prompts, encoded)
    bodies = bodies_of(encoded * len(prompts), prompts)
    memory: list[float] = []
    with serving("tiny", "cpu") as (url, pid):

        def watch(number: int) -> None:
            if number % max(1, count // 10) == 0:
                memory.append(resident_mib(pid))

        answers = asyncio.run(ask_all(url, bodies, count, CLIENTS, watch))
    wanted = [expected[number % len(prompts), number % CLIENTS] for number in range(count)]
    errors = np.abs(np.array([score for _, score, _ in answers]) - wanted)
    gap = np.median(np.diff(np.sort(expected.ravel())))
    return {
        "requests": count,
        "lost": sum(status != 200 for status, _, _ in answers),
        "crossed": int((errors > 1e-6).sum()),
        "max_error": float(errors.max()),
        "median_gap_of_scores": float(gap),
        "memory_mib": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=50_000, help="whose answers are checked")
    parser.add_argument("--images", type=int, default=256, help="of each round of the throughput")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="of the throughput")
    parser.add_argument(
        "--only", choices=["throughput", "cpu", "latency", "answers"], help="print one, write none"
    )
    record.add_option(parser)
    arguments = parser.parse_args()
    parts = {
        "throughput": lambda: throughput(arguments.images, arguments.device, arguments.rounds),
        "cpu": lambda: cpu(min(5000, arguments.requests)),
        "latency": lambda: latency(min(2000, arguments.requests)),
        "answers": lambda: answers_of_many(arguments.requests),
    }
    if arguments.only:
        print(parts[arguments.only]())
        return
    record.refuse_changes(arguments.allow_changes)
    result = {"environment": record.environment(torch.device(arguments.device))}
    for name, measure in parts.items():
        print(name, file=sys.stderr)
        result[name] = measure()
    print(record.write(f"serve-{torch.device(arguments.device).type}", result))


if __name__ == "__main__":
    main()
