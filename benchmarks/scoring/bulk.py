"""Benchmark of bulk scoring: throughput beside the bare model, overhead, memory, kills, bad images, cache.

    python -m benchmarks.scoring.bulk [--device cuda] [--rows 10000] [--full-rows N] [--only NAME …]

Throughput and cache are measured with ImageReward at full size, random weights and smooth random images, the
rest with ImageReward-tiny and Shapes. Every measure is written to results/bulk-*.json when it is done.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import torch

import imagereward as RM
from benchmarks.lib import record
from imagereward import shapes
from imagereward.bulk import score_table
from imagereward.bulk.decoding.loading import ImageRequest, Loader
from imagereward.checkpoints.assembling import random_scorer
from imagereward.checkpoints.registry import REGISTRY

TINY = "ImageReward-tiny"
POOL = 500  # images of a table of many rows; they repeat, as a million files would not fit
SIDE = 512  # of images for the scorer at full size
KILLS = 10
CORRUPT = 0.05


def draw_smooth(directory: Path, count: int) -> list[str]:
    """Smooth random PNG files."""
    small = np.random.default_rng(0).integers(0, 255, (count, 16, 16, 3), dtype=np.uint8)
    bicubic = PIL.Image.Resampling.BICUBIC
    return save(directory, (PIL.Image.fromarray(picture).resize((SIDE, SIDE), bicubic) for picture in small))


def draw_shapes(directory: Path) -> list[str]:
    """PNG files of Shapes."""
    return save(directory, (shapes.pair(index)[1] for index in range(POOL)))


def save(directory: Path, images: Iterable[PIL.Image.Image]) -> list[str]:
    """The names of the files."""
    directory.mkdir()
    names = []
    for index, image in enumerate(images):
        names.append(str(directory / f"{index}.png"))
        image.save(names[-1])
    return names


def write_table(path: Path, images: list[str], prompts: Iterable[str]) -> Path:
    """A table of the prompts, with the images in turn."""
    with open(path, "w") as stream:
        for row, prompt in enumerate(prompts):
            stream.write(json.dumps({"image": images[row % len(images)], "prompt": prompt}) + "\n")
    return path


def paintings(count: int, style: str = "") -> list[str]:
    """Different prompts of a usual length."""
    return [f"a painting of {number} boats on an ocean, day time {style}" for number in range(count)]


class Bench:
    """A directory with scorers and images, and a method for each measure."""

    def __init__(self, work: Path, device: str, rows: int, full_rows: int):
        self.work, self.device, self.rows, self.full_rows = work, device, rows, full_rows
        self.pool = draw_shapes(work / "pool")

    def score(self, table: Path, out: str, model: str, **options) -> float:
        """Seconds that scoring takes, loading included."""
        start = time.perf_counter()
        score_table(
            table, self.work / out, model, device=self.device, progress=False, overwrite=True, **options
        )
        return time.perf_counter() - start

    def shapes_table(self, name: str, rows: int, images: list[str] | None = None) -> Path:
        """A table of prompts of Shapes, with the pool's images in turn or with these."""
        prompts = (shapes.prompt(row) for row in range(rows))
        return write_table(self.work / f"{name}.jsonl", images or self.pool, prompts)

    def full(self) -> tuple[str, list[str]]:
        """The scorer at full size, saved, and its images."""
        directory, images = self.work / "full", self.work / "photos"
        if not directory.exists():
            random_scorer(REGISTRY["ImageReward-v1.0"].config, "cpu").save_pretrained(directory)
            draw_smooth(images, self.full_rows)
        return str(directory), [str(images / f"{index}.png") for index in range(self.full_rows)]

    def throughput(self) -> dict:
        """Rows per second at full size, beside the bare model on batches that are already decoded."""
        model, images = self.full()
        table = write_table(self.work / "full.jsonl", images, paintings(self.full_rows))
        scorer = RM.load(model, self.device)
        batch_size = 8 if scorer.device.type == "cpu" else 64
        loader = Loader(scorer.processors)
        start = time.perf_counter()
        pixels = [loader.load(ImageRequest(row, image, False)).pixels[0] for row, image in enumerate(images)]
        decode = time.perf_counter() - start
        prompts = [json.loads(line)["prompt"] for line in table.read_text().splitlines()]
        batches = [
            (torch.from_numpy(np.stack(pixels[at : at + batch_size])), prompts[at : at + batch_size])
            for at in range(0, len(pixels), batch_size)
        ]

        def bare() -> float:
            start = time.perf_counter()
            with torch.inference_mode():
                for part, words in batches:
                    pairs = torch.arange(len(words))[:, None].expand(-1, 2)
                    scorer(part, words, pairs).cpu()
            return time.perf_counter() - start

        bare()
        one = write_table(self.work / "one.jsonl", images, paintings(1))
        self.score(one, "first.parquet", model)  # imports are nobody's overhead
        load = self.score(one, "one.parquet", model)
        before, bulk, after = bare(), self.score(table, "full.parquet", model), bare()
        model_s, bulk_s = (before + after) / 2, bulk - load
        return {
            "rows": self.full_rows,
            "batch_size": batch_size,
            "bare_per_s": self.full_rows / model_s,
            "bulk_per_s": self.full_rows / bulk_s,
            "share": model_s / bulk_s,
            "decode_ms": 1000 * decode / self.full_rows,
            "share_with_decode": (model_s + decode) / bulk_s,
        }

    def overhead(self) -> dict:
        """CPU milliseconds per row of one process, without those of decoding and of the model."""
        table = self.shapes_table("tiny", self.rows)
        prompts = [json.loads(line)["prompt"] for line in table.read_text().splitlines()]
        scorer = RM.load(TINY, self.device)
        loader = Loader(scorer.processors)
        parts = [range(at, min(at + 256, self.rows)) for at in range(0, self.rows, 256)]

        def bare() -> None:
            for part in parts:
                pixels = [
                    loader.load(ImageRequest(row, self.pool[row % POOL], False)).pixels[0] for row in part
                ]
                for at in range(0, len(part), 8):
                    batch = torch.from_numpy(np.stack(pixels[at : at + 8]))
                    words = [prompts[row] for row in part[at : at + 8]]
                    with torch.inference_mode():
                        scorer(batch, words, torch.arange(len(words))[:, None].expand(-1, 2)).cpu()

        options = {"workers": 0, "batch_size": 8}
        one = self.shapes_table("one", 1)
        self.score(one, "first.parquet", TINY, **options)  # imports are nobody's overhead
        load = _cpu_seconds(lambda: self.score(one, "one-tiny.parquet", TINY, **options))
        bulk = _cpu_seconds(lambda: self.score(table, "overhead.parquet", TINY, **options)) - load
        plain = _cpu_seconds(bare)
        return {
            "rows": self.rows,
            "bulk_ms": 1000 * bulk / self.rows,
            "decode_and_model_ms": 1000 * plain / self.rows,
            "overhead_ms": 1000 * (bulk - plain) / self.rows,
        }

    def memory(self) -> dict:
        """Peak resident memory of the scoring process for the given rows and for ten times as many."""
        peaks = []
        for rows in (self.rows, 10 * self.rows):
            table = self.shapes_table("memory", rows)
            command = [
                sys.executable,
                "-m",
                "benchmarks.scoring.bulk",
                "--score",
                str(table),
                str(self.work / f"{rows}.parquet"),
            ]
            output = subprocess.run([*command, TINY], capture_output=True, check=True).stdout
            peaks.append(int(output) / 2**20)
        return {"rows": [self.rows, 10 * self.rows], "peak_mb": peaks, "ratio": peaks[1] / peaks[0]}

    def kills(self) -> dict:
        """Kill runs with SIGKILL at random moments and resume; compare the file with an undisturbed run's."""
        table = self.shapes_table("kills", self.rows)
        undisturbed = self.score(table, "undisturbed.parquet", TINY)
        out = self.work / "killed.parquet"
        command = [sys.executable, "-m", "benchmarks.scoring.bulk", "--score", str(table), str(out), TINY]
        moments = random.Random(0)
        killed = 0
        while killed < KILLS:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            try:
                # From the start, imports included, to a point that leaves work for those to come.
                process.wait(moments.uniform(0.5, 5 + undisturbed / KILLS))
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
            process.wait()
            if out.exists():
                break
        if not out.exists():
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        equal = out.read_bytes() == (self.work / "undisturbed.parquet").read_bytes()
        return {"rows": self.rows, "kills": killed, "equal": equal}

    def corrupt(self) -> dict:
        """Compare the rows with a damaged image with the rows that have an error."""
        chosen = set(random.Random(0).sample(range(POOL), int(CORRUPT * POOL)))
        images = draw_shapes(self.work / "damaged")
        for index in chosen:
            data = Path(images[index]).read_bytes()
            Path(images[index]).write_bytes(data[: len(data) // 2])
        table = self.shapes_table("corrupt", self.rows, images)
        self.score(table, "corrupt.parquet", TINY)
        errors = pq.read_table(self.work / "corrupt.parquet")["error"].to_pylist()
        wrong = [row for row, error in enumerate(errors) if (error is not None) != (row % POOL in chosen)]
        failed = sum(error is not None for error in errors)
        return {"rows": self.rows, "damaged": len(chosen) / POOL, "failed": failed, "wrong": len(wrong)}

    def cache(self) -> dict:
        """Seconds of a first run at full size, and of a second with other prompts and cached features."""
        model, images = self.full()
        seconds = []
        one = write_table(self.work / "one.jsonl", images, paintings(1))
        self.score(one, "first-cache.parquet", model)
        load = self.score(one, "one-cache.parquet", model)
        options = {"cache": self.work / "cache", "cache_budget": self.full_rows * 1e-3 + 0.01}
        for style in ("in oil", "in ink"):
            table = write_table(self.work / f"{style}.jsonl", images, paintings(self.full_rows, style))
            seconds.append(self.score(table, f"{style}.parquet", model, **options) - load)
        size = sum(path.stat().st_size for path in (self.work / "cache").iterdir())
        return {
            "rows": self.full_rows,
            "first_s": seconds[0],
            "second_s": seconds[1],
            "times": seconds[0] / seconds[1],
            "mb_an_image": size / self.full_rows / 2**20,
        }


def _cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _score_and_print_peak(table: str, out: str, model: str) -> None:
    score_table(table, out, model, device="cpu", progress=False, workers=1)
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))


MEASURES = ("throughput", "overhead", "memory", "kills", "corrupt", "cache")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--full-rows", type=int)
    parser.add_argument("--only", nargs="*", choices=MEASURES)
    parser.add_argument("--score", nargs=3, help=argparse.SUPPRESS)
    record.add_option(parser)
    arguments = parser.parse_args()
    if arguments.score:
        _score_and_print_peak(*arguments.score)
        return
    record.refuse_changes(arguments.allow_changes)
    device = torch.device(arguments.device)
    full_rows = arguments.full_rows or (256 if device.type == "cpu" else 8192)
    name = f"bulk-{device.type}"
    result = record.so_far(name, device) if arguments.only else {}
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(Path(work), arguments.device, arguments.rows, full_rows)
        for measure in arguments.only or MEASURES:
            found = getattr(bench, measure)()
            print(measure, json.dumps(found), flush=True)
            result |= {measure: found, "environment": record.environment(device)}
            print(record.write(name, result))


if __name__ == "__main__":
    main()
