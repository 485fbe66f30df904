"""Best of N: draws several images with a diffusers pipeline and ranks them by reward."""

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

    pipeline     a callable `(prompt, num_images_per_prompt=, generator=[...])` whose result has `images`
    n            number of images, at least 1; default 8
    seed         image i is drawn with the seed `seed + i`, whatever the batch size: `seed + ranking.order[0]`
                 and n=1 draw the best image again
    batch_size   images drawn at a time, at least 1; default 1
    options      further arguments of the pipeline (num_inference_steps, guidance_scale, height ...)

    Raises InputError for numbers out of range, for options that `best_of` sets itself, and for a pipeline
    that returns another number of images; and the scorer's errors.
    """
    n, batch_size = whole_number("n", n, 1), whole_number("batch_size", batch_size, 1)
    if taken := [name for name in OURS if name in options]:
        raise InputError(f"best_of sets {', '.join(taken)} itself: pass n, seed and batch_size instead")
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
