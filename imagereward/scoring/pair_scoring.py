"""score_rows: computes the scores of (image, prompt) rows with a model, for all verbs of `Scorer`.

Each distinct image is decoded and encoded once, and each distinct prompt is encoded once. Images are encoded
in blocks, and only one block's features are in memory.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from tqdm import tqdm

from imagereward.errors import InputError, NonFiniteScoreError, listing
from imagereward.images.reading import identity, load_pixels, name_of
from imagereward.scoring.adapted import check_ran

# How far pixels may lie outside [0, 1], as after bicubic resizing, before they are refused.
PIXEL_SLACK = 0.01


def score_rows(
    scorer, prompts: list[str], images: list, pairs_P_2: torch.Tensor, batch_size: int, head: Callable
) -> torch.Tensor:
    """The scores float32 [P] of the rows on the CPU, or [P, C] if `head` gives C numbers a row.

    pairs_P_2   row p pairs images[pairs[p, 0]] with prompts[pairs[p, 1]]
    batch_size  most images in one call of `encode_images`
    head        the scorer's `head`, or a function like it

    Raises InputError for nothing to score, the errors of `imagereward.images` for an unusable image (before
    the model runs), NonFiniteScoreError for a score that is NaN or infinite.
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

    scorer.check_scores(scores, describe)
    return scores


def score_pixels(
    scorer,
    prompts: list[str],
    pixels: Iterable[tuple],
    pairs_P_2: torch.Tensor,
    batch_size: int,
    head: Callable,
) -> torch.Tensor:
    """`score_rows` of images that are decoded already, as by `load_pixels`; scores may be not finite.

    pixels  for each image a tuple with the item of each of the scorer's processors
    """
    kept, prompt_of = distinct(prompts)
    pairs = torch.stack([pairs_P_2[:, 0], prompt_of[pairs_P_2[:, 1]]], 1)
    pixels = iter(pixels)

    size = min(batch_size, scorer.pairs_per_forward)

    def blocks():
        while block := list(islice(pixels, size)):
            batches = [each.collate(items) for each, items in zip(scorer.processors, zip(*block))]
            yield scorer.encode_pixels(batches), len(block)

    return score_blocks(scorer, [prompts[index] for index in kept], blocks(), pairs, head, encoded=True)


def score_blocks(
    scorer,
    prompts: list[str],
    blocks: Iterable[tuple[Any, int]],
    pairs_P_2: torch.Tensor,
    head: Callable,
    *,
    encoded: bool = False,
) -> torch.Tensor:
    """The results of `head`, float32 [P] or [P, C], on the CPU, for the rows of `pairs_P_2`.

    blocks     (image features, number of images), in the order of image indices. The first block is read
               before prompts are encoded, so that an error of an image comes first
    pairs_P_2  indices (image, prompt) of each row
    encoded    whether the features are those of images that were encoded now, with the adapters that are on

    Raises InputError for an adapter with modules that the first block did not call: it changes nothing there.
    """
    by_image = pairs_P_2[:, 0].argsort(stable=True)
    image_of_row = pairs_P_2[by_image, 0].contiguous()
    results, order, encoded_prompts, first = [], [], None, 0
    with torch.inference_mode(), scorer.evaluating():
        for features, count in blocks:
            if encoded_prompts is None:
                encoded_prompts = scorer.encode_prompts(prompts)
            start, end = torch.searchsorted(image_of_row, torch.tensor([first, first + count])).tolist()
            if start == end:  # images that no row names
                first += count
                continue
            for part in _parts(by_image[start:end], pairs_P_2, count, scorer.pairs_per_forward):
                local = pairs_P_2[part] - torch.tensor([first, 0])
                results.append(head(features, encoded_prompts, local).float().cpu())
                if len(results) == 1:
                    check_ran(scorer, encoded)
                order.append(part)
            first += count
    scores = torch.cat(results)
    return torch.empty_like(scores).index_copy_(0, torch.cat(order), scores)


def check_pixels(pixels: Any) -> None:
    """Raises InputError unless they are a float tensor [B, 3, H, W] in [0, 1], not empty."""
    if not isinstance(pixels, torch.Tensor):
        raise InputError(f"pixels are a {type(pixels).__name__}; expected a tensor [B, 3, H, W]")
    shape = tuple(pixels.shape)
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
        raise InputError(f"pixels are {pixels.dtype} {shape}; expected float [B, 3, H, W] in [0, 1]")
    if not pixels.numel():
        raise InputError(f"pixels are empty: {shape}")
    low, high = pixels.detach().aminmax()
    if not (low >= -PIXEL_SLACK and high <= 1 + PIXEL_SLACK):  # NaN fails both
        raise InputError(f"pixels are in [{low:.3g}, {high:.3g}]; expected [0, 1]")


def check_finite(name: str, scores: torch.Tensor, describe: Callable[[int], str]) -> None:
    """Raises NonFiniteScoreError if a score is NaN or infinite; `describe` names a row by its index."""
    finite = torch.isfinite(scores.detach()).reshape(len(scores), -1).all(1)
    if not finite.all():
        bad = [describe(row) for row in (~finite).nonzero().flatten().tolist()]
        raise NonFiniteScoreError(
            f"{name} gave {len(bad)} scores that are not finite: {listing(bad, 3)}; "
            "its weights are damaged, its dtype overflows (try dtype='float32'), or a remote scorer gave no "
            "score, which the log explains"
        )


def distinct(keys: Sequence) -> tuple[list[int], torch.Tensor]:
    """(firsts, places): firsts has the index of each distinct key's first occurrence, in order.

    keys[i] equals keys[firsts[places[i]]]; places is a tensor with an index for each key.
    """
    place: dict = {}
    places = [place.setdefault(key, len(place)) for key in keys]
    firsts: list[int] = []
    for index, position in enumerate(places):
        if position == len(firsts):
            firsts.append(index)
    return firsts, torch.tensor(places)


def _parts(rows: torch.Tensor, pairs_P_2: torch.Tensor, images: int, most: int) -> list[torch.Tensor]:
    """The row indices, sorted by image, in parts of at most `most`.

    If all images have equally many rows, and there are at most `most` images, every part has all images.
    """
    if len(rows) <= most:
        return [rows]
    counts = torch.unique_consecutive(pairs_P_2[rows, 0], return_counts=True)[1]
    if len(counts) == images <= most and bool((counts == counts[0]).all()):
        return [part.reshape(-1) for part in rows.view(images, -1).split(most // images, dim=1)]
    return list(rows.split(most))
