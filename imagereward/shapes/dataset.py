"""Data sets of Shapes: rankings on disk in ImageRewardDB's layout, and (prompt, image) pairs on demand."""

import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from imagereward.config import whole_number
from imagereward.errors import InputError, OutputError, listing
from imagereward.shapes.corrupt import (
    DAMAGES,
    LEVELS,
    damaged,
    misread,
    possible_mistakes,
    unfaithful,
)
from imagereward.shapes.language import read, say
from imagereward.shapes.render import draw, to_image
from imagereward.shapes.scene import MOST_THINGS, SPLITS, SceneRequest, arrange, ask, check_split
from imagereward.shapes.truth import Annotator, Truth
from imagereward.writing import write_text

# Relative odds of mistakes in wrong prompts: higher for mistakes that are hard to see in 64 pixels.
WRONG_ODDS = {"colour": 0.7, "shape": 3.0, "count": 1.5, "relation": 4.0, "missing": 0.5, "extra": 0.5}
# Odds of levels 0 to 3 of a candidate. Half are clean and two fifths faithful, so that many pairs of images
# differ in faithfulness alone or in quality alone.
FAITHFULNESS_ODDS = (0.40, 0.38, 0.12, 0.10)
QUALITY_ODDS = (0.50, 0.20, 0.15, 0.15)


def candidate(
    request: SceneRequest,
    faithfulness: int,
    quality: int,
    rng: np.random.Generator,
    size: int = 64,
) -> tuple[Image.Image, Truth]:
    """(image, truth): a new drawing of the request with these levels of damage, 0 to 3.

    size   pixels of a side
    """
    drawn, mistakes = unfaithful(request, faithfulness, rng)
    scene = arrange(drawn, rng)
    damage = str(rng.choice(DAMAGES)) if quality else None
    pixels = damaged(scene, damage, quality, rng, size) if damage else draw(scene, rng, size)
    return to_image(pixels), Truth(faithfulness, mistakes, quality, damage)


def candidates(
    request: SceneRequest, images: int, rng: np.random.Generator, size: int = 64
) -> list[tuple[Image.Image, Truth]]:
    """`images` drawings of the request whose levels are drawn by FAITHFULNESS_ODDS and QUALITY_ODDS."""
    levels = range(LEVELS + 1)
    return [
        candidate(
            request,
            int(rng.choice(levels, p=FAITHFULNESS_ODDS)),
            int(rng.choice(levels, p=QUALITY_ODDS)),
            rng,
            size,
        )
        for _ in range(images)
    ]


def prompt(index: int, seed: int = 0, split: str = "train", most_things: int = MOST_THINGS) -> str:
    """The prompt of `pair` with the same arguments, without its image."""
    return asked(index, seed, split, most_things)[1]


def pair(
    index: int, seed: int = 0, split: str = "train", size: int = 64, most_things: int = MOST_THINGS
) -> tuple[str, Image.Image]:
    """(prompt, image), flawless, for training generators: a function of its arguments.

    index, seed   number the pair
    split         "train", "valid" or "test": no two splits share a request (`SceneRequest.split`)
    size          pixels of a side
    most_things   things that the prompt may ask for, 1 to 4
    """
    request, words, rng = asked(index, seed, split, most_things)
    return words, to_image(draw(arrange(request, rng), rng, size))


def asked(
    index: int, seed: int, split: str, most_things: int
) -> tuple[SceneRequest, str, np.random.Generator]:
    """(request, prompt, generator that the drawing continues with) of `pair` with the same arguments."""
    rng = _generator(seed, split, index)
    request = ask(rng, split, most_things)
    return request, say(request, rng), rng


def pairs(seed: int = 0, split: str = "train", size: int = 64) -> Iterator[tuple[str, Image.Image]]:
    """An endless iterator over `pair(0, ...)`, `pair(1, ...)`, ..."""
    return (pair(index, seed, split, size) for index in itertools.count())


def wrong_prompt(prompt: str, rng: np.random.Generator) -> str:
    """A prompt that differs from `prompt` by one of `MISTAKES`, in a random phrasing."""
    request = read(prompt)
    # The grammar has no phrasing with a relation and a third thing.
    mistakes = [m for m in possible_mistakes(request) if not (request.relation and m == "extra")]
    weights = np.array([WRONG_ODDS[mistake] for mistake in mistakes])
    return say(misread(request, str(rng.choice(mistakes, p=weights / weights.sum())), rng), rng)


def write(
    out: str | os.PathLike,
    prompts: int,
    seed: int = 0,
    *,
    images: int = 6,
    size: int = 64,
    annotator: Annotator | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write `out`/train.json, valid.json and test.json, and their images under `out`/images.

    prompts    of all splits, at least 3: 80 % train, 10 % valid, 10 % test, at least one each
    images     of each prompt, at least 2
    size       pixels of a side, at least 16
    annotator  ranks the images; default: `Annotator()`
    overwrite  True replaces a data set that `write` made, known by its records and the names of its images;
               refused if `out` holds other files, such as ImageRewardDB itself

    Requests of different splits never coincide. Each record has ImageRewardDB's keys id, prompt, generations
    and ranking, and `truth`, a dict for each image. Equal arguments write equal bytes. Returns {split: number
    of prompts}. Raises InputError for numbers out of range and for an annotator to whom all images tie;
    OutputError if `out` exists and is not empty.
    """
    prompts, images = whole_number("prompts", prompts, 3), whole_number("images", images, 2)
    size, seed = whole_number("size", size, 16), whole_number("seed", seed, 0)
    annotator = annotator or Annotator()
    _check_preferences(annotator)
    out = Path(out).expanduser()
    _make_room(out, overwrite)
    held_out = max(1, prompts // 10)
    counts = dict(zip(SPLITS, (prompts - 2 * held_out, held_out, held_out)))
    bar = tqdm(total=prompts, unit="prompt", disable=not progress)
    for split, count in counts.items():
        (out / "images" / split).mkdir(parents=True)
        records = []
        for index in range(count):
            records.append(
                _record(out, split, index, _generator(seed, split, index), images, size, annotator)
            )
            bar.update()
        write_text(out / f"{split}.json", json.dumps(records, indent=1) + "\n")
    bar.close()
    return counts


def _make_room(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; expected the name of a directory")
    found = set(out.iterdir()) if out.exists() else set()
    if found and not overwrite:
        raise OutputError(f"{out} exists; pass --overwrite (overwrite=True) to replace it")
    images = out / "images"
    found = found - {images} | (set(images.iterdir()) if images.is_dir() else set())
    written = {
        path
        for split in SPLITS
        for path, is_ours in ((out / f"{split}.json", _is_records), (images / split, _is_images))
        if path in found and is_ours(path, split)
    }
    if strangers := found - written:
        names = listing(sorted(str(path.relative_to(out)) for path in strangers), 3)
        raise OutputError(f"{out} holds more than a data set of Shapes ({names}); choose another directory")
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_records(path: Path, split: str) -> bool:
    """Whether a file's first record is one of `write`."""
    try:
        records = json.loads(path.read_text())
        return records[0]["id"] == f"{split}-000000" and "truth" in records[0]
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _is_images(path: Path, split: str) -> bool:
    """Whether a directory has no files but images with the names that `write` gives."""
    form = re.compile(rf"{split}-\d{{6,}}-\d+\.png")
    return path.is_dir() and all(form.fullmatch(each.name) for each in path.iterdir())


def _check_preferences(annotator: Annotator) -> None:
    """InputError for an annotator whose images tie all, or so often that drawing again would hardly end."""
    differ = LEVELS * sum(map(abs, annotator.taste)) + 4 * annotator.noise
    if not differ > annotator.tie:
        raise InputError(
            f"noise={annotator.noise:g} and taste={annotator.taste}: the utilities of images differ by about "
            f"{differ:.2g} at most, and those that differ by up to tie={annotator.tie:g} share a rank: "
            "expected more noise, or a larger weight of faithfulness or quality"
        )


def _record(out: Path, split: str, index: int, rng, images: int, size: int, annotator: Annotator) -> dict:
    request = ask(rng, split)
    prompt = say(request, rng)
    drawn = candidates(request, images, rng, size)
    # The trainer refuses prompts whose images all tie: draw again.
    while len(set(ranking := annotator.rank([truth for _, truth in drawn], rng))) == 1:
        drawn = candidates(request, images, rng, size)
    name = f"{split}-{index:06d}"
    paths = [f"images/{split}/{name}-{place}.png" for place in range(images)]
    for path, (image, _) in zip(paths, drawn):
        image.save(out / path, compress_level=1)
    return {
        "id": name,
        "prompt": prompt,
        "generations": paths,
        "ranking": ranking,
        "truth": [asdict(truth) for _, truth in drawn],
    }


def _generator(seed: int, split: str, index: int) -> np.random.Generator:
    check_split(split)
    return np.random.default_rng([seed, SPLITS.index(split), index])
