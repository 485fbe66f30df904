"""Best of N: draw several images, keep them in order of their reward."""

from collections.abc import Callable
from typing import Any

import torch

from imagereward.config import whole_number
from imagereward.errors import InputError
from imagereward.scoring.api import PairScorer
from imagereward.scoring.ranking import Ranking

OURS = ("prompt", "generator", "num_images_per_prompt")


def best_of(
    pipeline: Callable[..., Any],
    scorer: PairScorer,
    prompt: str,
    n: int = 8,
    *,
    seed: int = 0,
    batch_size: int = 1,
    **options: Any,
) -> Ranking:
    """Draw `n` images with a diffusers pipeline and rank them: `.best`, `.order`, `.rewards`, `.images`.

    Image i comes from a generator with the seed `seed + i`, whatever the batch size: to draw the best one
    again, pass `seed + ranking.order[0]` and n=1. `batch_size` images are drawn at a time; `options` go to
    the pipeline (num_inference_steps, guidance_scale, height ...). A pipeline is anything that takes
    `(prompt, num_images_per_prompt=, generator=[...])` and returns an object with `images`.

    Raises InputError for an n or batch_size below 1, for options that are set here, and for a pipeline that
    returns another number of images; and what scoring raises.
    """
    n, batch_size = whole_number("n", n, 1), whole_number("batch_size", batch_size, 1)
    if taken := [name for name in OURS if name in options]:
        raise InputError(f"best_of sets {', '.join(taken)} itself: say n, seed and batch_size")
    images: list[Any] = []
    for start in range(0, n, batch_size):
        count = min(batch_size, n - start)
        # On the CPU, so that every device draws the same noise.
        generators = [torch.Generator("cpu").manual_seed(seed + start + at) for at in range(count)]
        drawn = pipeline(prompt, num_images_per_prompt=count, generator=generators, **options).images
        if len(drawn) != count:
            raise InputError(f"the pipeline was asked for {count} images and returned {len(drawn)}")
        images.extend(drawn)
    return scorer.rank(prompt, images)
