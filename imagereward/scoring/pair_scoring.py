"""The one engine under the verbs: rows of (image, prompt) pairs to scores.

Each distinct image is decoded and encoded once and each distinct prompt once, images go through in
blocks, and only what a block's rows need is in memory.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from tqdm import tqdm

from imagereward.errors import InputError, NonFiniteScoreError, listing
from imagereward.images.reading import identity, load_pixels, name_of


def score_rows(
    scorer, prompts: list[str], images: list, pairs_P_2: torch.Tensor, batch_size: int, head: Callable
) -> torch.Tensor:
    """`head`'s float32 results on the CPU, one a row: row p pairs images[pairs[p, 0]], prompts[pairs[p, 1]].

    Raises InputError for nothing to score, the errors of `imagereward.images` for an unusable image
    (before the model runs), NonFiniteScoreError for a score that is NaN or infinite.
    """
    if not prompts or not images:
        raise InputError(f"nothing to score: {len(prompts)} prompts and {len(images)} images")
    kept, image_of = distinct([identity(image) for image in images])
    pairs = torch.stack([image_of[pairs_P_2[:, 0]], pairs_P_2[:, 1]], 1)
    decoded = load_pixels(images, scorer.processors, kept)
    bar = tqdm(iterable=decoded, total=len(kept), desc=scorer.name, unit="image", delay=2, leave=False)
    with contextlib.closing(decoded), bar:
        scores = score_pixels(scorer, prompts, bar, pairs, batch_size, head)

    def describe(row: int) -> str:
        image, prompt = pairs_P_2[row].tolist()
        return f"{name_of(images[image], image)} with {prompts[prompt][:40]!r}"

    check_finite(scorer.name, scores, describe)
    return scores


def score_pixels(
    scorer,
    prompts: list[str],
    pixels: Iterable[tuple],
    pairs_P_2: torch.Tensor,
    batch_size: int,
    head: Callable,
) -> torch.Tensor:
    """`score_rows` of images that are decoded as `load_pixels` does it; results may be not finite."""
    kept, prompt_of = distinct(prompts)
    pairs = torch.stack([pairs_P_2[:, 0], prompt_of[pairs_P_2[:, 1]]], 1)
    pixels = iter(pixels)

    size = min(batch_size, scorer.pairs_per_forward)

    def blocks():
        while block := list(islice(pixels, size)):
            batches = [each.collate(items) for each, items in zip(scorer.processors, zip(*block))]
            yield scorer.encode_pixels(batches), len(block)

    return score_blocks(scorer, [prompts[index] for index in kept], blocks(), pairs, head)


def score_blocks(
    scorer, prompts: list[str], blocks: Iterable[tuple[Any, int]], pairs_P_2: torch.Tensor, head: Callable
) -> torch.Tensor:
    """`head`'s float32 results on the CPU, one a row of `pairs_P_2`: (image, prompt) indices.

    `blocks` gives images in the order of their indices, as (features, how many). The first is taken
    before the prompts are encoded, so that images which fail to come fail first.
    """
    by_image = pairs_P_2[:, 0].argsort(stable=True)
    image_of_row = pairs_P_2[by_image, 0].contiguous()
    results, order, encoded_prompts, first = [], [], None, 0
    with torch.inference_mode(), scorer.evaluating():
        for features, count in blocks:
            if encoded_prompts is None:
                encoded_prompts = scorer.encode_prompts(prompts)
            start, end = torch.searchsorted(image_of_row, torch.tensor([first, first + count])).tolist()
            for part in _parts(by_image[start:end], pairs_P_2, count, scorer.pairs_per_forward):
                local = pairs_P_2[part] - torch.tensor([first, 0])
                results.append(head(features, encoded_prompts, local).float().cpu())
                order.append(part)
            first += count
    scores = torch.cat(results)
    return torch.empty_like(scores).index_copy_(0, torch.cat(order), scores)


def check_finite(name: str, scores: torch.Tensor, describe: Callable[[int], str]) -> None:
    """NonFiniteScoreError, naming the first rows by `describe`, if a score is NaN or infinite."""
    finite = torch.isfinite(scores.detach()).reshape(len(scores), -1).all(1)
    if not finite.all():
        bad = [describe(row) for row in (~finite).nonzero().flatten().tolist()]
        raise NonFiniteScoreError(
            f"{name} gave {len(bad)} scores that are not finite: {listing(bad, 3)}; "
            "its weights are damaged or its dtype overflows (try dtype='float32')"
        )


def distinct(keys: Sequence) -> tuple[list[int], torch.Tensor]:
    """(index of each distinct key's first occurrence, for each key the place of that in the former)."""
    place: dict = {}
    places = [place.setdefault(key, len(place)) for key in keys]
    firsts: list[int] = []
    for index, position in enumerate(places):
        if position == len(firsts):
            firsts.append(index)
    return firsts, torch.tensor(places)


def _parts(rows: torch.Tensor, pairs_P_2: torch.Tensor, images: int, most: int) -> list[torch.Tensor]:
    """`rows`, sorted by image, in parts of at most `most`; every image in every part if possible."""
    if len(rows) <= most:
        return [rows]
    counts = torch.bincount(pairs_P_2[rows, 0])[-images:]
    if images <= most and bool((counts == counts[0]).all()):
        return [part.reshape(-1) for part in rows.view(images, -1).split(most // images, dim=1)]
    return list(rows.split(most))
