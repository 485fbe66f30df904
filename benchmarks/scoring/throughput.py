"""Benchmark of the ImageReward scorer at full size: speed, memory and error, against a plain loop.

    python -m benchmarks.scoring.throughput [--device cuda] [--rounds 3] [--batch-size N]

Weights are random, since speed does not depend on them. The variants alternate within a round, and every
figure is a median over rounds. Writes results/throughput-*.json.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import PIL.Image
import torch
from torch.utils.flop_counter import FlopCounterMode

import imagereward as RM
from benchmarks.lib import record
from benchmarks.lib.plain_loop import PlainImageReward
from imagereward.checkpoints.assembling import random_scorer
from imagereward.checkpoints.registry import REGISTRY
from imagereward.models import model_class

CONFIG = REGISTRY["ImageReward-v1.0"].config
PROMPTS = [f"a painting of {thing}, day time, low depth field effect" for thing in (
    "an ocean", "birds", "clouds above a hill", "a red bicycle", "two cats and one dog", "a street in rain",
    "an old lighthouse", "snow", "a robot reading a newspaper", "tea", "a crowded market", "a violin",
    "mountains at dusk", "a glass of water on a table", "a fox", "the inside of a clock tower",
)]  # fmt: skip
MATRIX_IMAGES = 8
LOOP_PAIRS = 16  # of the matrix's 128: the loop's cost is linear in pairs, so its time is scaled up


def images(count: int) -> list[PIL.Image.Image]:
    """Smooth random pictures of 512 x 512."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (count, 16, 16, 3), dtype=np.uint8)
    return [
        PIL.Image.fromarray(picture).resize((512, 512), PIL.Image.Resampling.BICUBIC) for picture in small
    ]


def timed(function, device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def alternate(variants: dict, rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each variant, after one warm-up each, over `rounds` rounds of all variants."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, function in variants.items():
            seconds = timed(function, device)
            if turn:
                times[name].append(seconds)
                print(f"  round {turn}: {name} {seconds:.2f} s", file=sys.stderr)
    return {name: median(values) for name, values in times.items()}


def scoring(
    scorers: dict, plain: PlainImageReward, pictures, rounds: int, batch_size: int | None
) -> list[dict]:
    """Images per second of one prompt with many images, and of a matrix, beside the loop."""
    device = scorers["float32"].device
    few = pictures[:MATRIX_IMAGES]
    one_by_one = pictures[: max(4, len(pictures) // 4)]
    pairs = [(prompt, picture) for prompt in PROMPTS for picture in few][:LOOP_PAIRS]
    variants = {
        "loop": lambda: [plain.score(PROMPTS[0], picture) for picture in one_by_one],
        **{
            name: partial(scorer.score, PROMPTS[0], pictures, batch_size=batch_size)
            for name, scorer in scorers.items()
        },
        "matrix loop": lambda: [plain.score(*pair) for pair in pairs],
        "matrix": lambda: scorers["float32"].score_matrix(PROMPTS, few),
    }
    seconds = alternate(variants, rounds, device)
    baseline = len(one_by_one) / seconds["loop"]
    rows = [{"what": "one at a time, float32, eager", "per_s": baseline, "times_loop": 1.0}]
    for name in scorers:
        rate = len(pictures) / seconds[name]
        rows.append({"what": f"score, {name}", "per_s": rate, "times_loop": rate / baseline})
    loop_rate = len(pairs) / seconds["matrix loop"]
    rate = len(PROMPTS) * len(few) / seconds["matrix"]
    what = f"score_matrix, {len(PROMPTS)} x {len(few)}, float32 (pairs)"
    rows.append({"what": what, "per_s": rate, "times_loop": rate / loop_rate})
    return rows


def errors(scorers: dict, pictures) -> list[dict]:
    """Largest and mean difference from float32 over a matrix of scores, in score units."""
    exact = scorers["float32"].score_matrix(PROMPTS, pictures[:MATRIX_IMAGES])
    rows = []
    for name, scorer in scorers.items():
        difference = np.abs(scorer.score_matrix(PROMPTS, pictures[:MATRIX_IMAGES]) - exact)
        rows.append(
            {"dtype": name, "max_error": float(difference.max()), "mean_error": float(difference.mean())}
        )
    return rows


def model_alone(scorer, batch_size: int, rounds: int) -> dict:
    """Share of the device's measured matrix-product rate that the model reaches, pixels to scores."""
    device, size = scorer.device, scorer.preprocess.size
    pixels = torch.rand(batch_size, 3, size, size, device=device)
    side = 8192 if device.type == "cuda" else 2048
    square = torch.randn(side, side, device=device, dtype=scorer.dtype)
    with torch.inference_mode():
        counter = FlopCounterMode(display=False)
        with counter:
            scorer.reward(pixels, PROMPTS[0], batch_size=batch_size)
        variants = {
            "model": lambda: scorer.reward(pixels, PROMPTS[0], batch_size=batch_size),
            "product": lambda: [square @ square for _ in range(10)],
        }
        seconds = alternate(variants, rounds, device)
    model_rate = counter.get_total_flops() / seconds["model"]
    product_rate = 10 * 2 * side**3 / seconds["product"]
    return {
        "dtype": str(scorer.dtype).removeprefix("torch."),
        "batch": batch_size,
        "images_per_s": batch_size / seconds["model"],
        "model_tflops": model_rate / 1e12,
        "product_tflops": product_rate / 1e12,
        "share": model_rate / product_rate,
    }


def loading(rounds: int) -> dict:
    """Seconds to load the released format, against building a random model and filling it; peak memory."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "ImageReward.pt")
        torch.save(random_scorer(CONFIG, "cpu").state_dict(), path)

        def build_and_fill():
            model = model_class(CONFIG.kind)(CONFIG)
            model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

        seconds = alternate(
            {"load": lambda: RM.load(path, "cpu"), "build and fill": build_and_fill},
            rounds,
            torch.device("cpu"),
        )
        checkpoint = path.stat().st_size
        command = [sys.executable, "-m", "benchmarks.scoring.throughput", "--peak-memory-of", str(path)]
        imports, peak = map(int, subprocess.run(command, capture_output=True, check=True).stdout.split())
    return {
        "load_s": seconds["load"],
        "build_and_fill_s": seconds["build and fill"],
        "load_share": seconds["load"] / seconds["build and fill"],
        "checkpoint_mb": checkpoint / 2**20,
        "peak_over_imports_mb": (peak - imports) / 2**20,
        "peak_share": (peak - imports) / checkpoint,
    }


def peak_memory_of(path: str) -> None:
    """Print peak resident bytes after imports, then after loading `path` and scoring one image."""
    picture = images(1)[0]
    print(_peak_resident())
    RM.load(path, "cpu").score(PROMPTS[0], picture)
    print(_peak_resident())


def _peak_resident() -> int:
    # Not getrusage: a child starts with the peak of the process that spawned it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--peak-memory-of", help=argparse.SUPPRESS)
    record.add_option(parser)
    arguments = parser.parse_args()
    if arguments.peak_memory_of:
        peak_memory_of(arguments.peak_memory_of)
        return
    record.refuse_changes(arguments.allow_changes)
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    batch_size = arguments.batch_size or (256 if on_gpu else 8)
    pictures = images(arguments.images or (512 if on_gpu else 16))
    dtypes = ("float32", "bfloat16", "float16")
    scorers = {dtype: random_scorer(CONFIG, device, dtype) for dtype in dtypes}
    result = {
        "environment": record.environment(device),
        "images": len(pictures),
        "batch_size": batch_size,
        "scoring": scoring(
            scorers, PlainImageReward(scorers["float32"]), pictures, arguments.rounds, batch_size
        ),
        "errors": errors(scorers, pictures),
        "model_alone": [model_alone(scorer, batch_size, arguments.rounds) for scorer in scorers.values()],
        "loading": loading(arguments.rounds),
    }
    path = record.write(f"throughput-{device.type}", result)
    print(path.read_text())


if __name__ == "__main__":
    main()
