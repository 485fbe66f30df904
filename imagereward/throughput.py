"""`imagereward bench`: measures a model's images per second by dtype and batch size."""

import time
from statistics import median
from typing import Any

import torch

from imagereward.checkpoints.assembling import random_scorer
from imagereward.checkpoints.registry import REGISTRY
from imagereward.errors import CheckpointError

PROMPT = "a painting of an ocean with clouds and birds, day time, low depth field effect"


def throughput(
    model: str, device: str | None, dtypes: list[str], batch_sizes: list[int], seconds: float
) -> list[dict[str, Any]]:
    """A dict for each dtype and batch size: device, dtype, batch, images_per_s, with random weights.

    model     a name of the registry; CheckpointError for others
    seconds   least time to measure each setting; the median is over at least three forward passes

    Images are random tensors, so that decoding is not measured.
    """
    if model not in REGISTRY:
        raise CheckpointError(f"{model!r} is no known scorer; known: {', '.join(REGISTRY)}")
    rows = []
    for dtype in dtypes:
        scorer = random_scorer(REGISTRY[model].config, device, dtype)
        for batch_size in batch_sizes:
            rate = batch_size / _seconds_a_pass(scorer, batch_size, seconds)
            rows.append(
                {"device": str(scorer.device), "dtype": dtype, "batch": batch_size, "images_per_s": rate}
            )
    return rows


def _seconds_a_pass(scorer, batch_size: int, seconds: float) -> float:
    side = scorer.preprocess.size
    pixels = torch.rand(batch_size, 3, side, side, device=scorer.device)
    times: list[float] = []
    with torch.inference_mode():
        scorer.reward(pixels, PROMPT, batch_size=batch_size)
        while len(times) < 3 or sum(times) < seconds:
            start = time.perf_counter()
            scorer.reward(pixels, PROMPT, batch_size=batch_size).cpu()  # .cpu() waits for the device
            times.append(time.perf_counter() - start)
    return median(times)
