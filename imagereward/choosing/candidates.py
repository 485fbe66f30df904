"""Candidates: the images of a folder by their prompts, and the pairs of images that may be compared."""

import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from imagereward.bulk.inputs.folders import Folder
from imagereward.errors import ImageRewardError, InputError
from imagereward.generation_metadata import prompt_of
from imagereward.images.reading import check_image
from imagereward.records import open_table, prompt_error, read_all

# Most pairs of one prompt's images; of more, so many are drawn.
MOST_PAIRS = 1000


@dataclass(frozen=True)
class Candidates:
    """Images and their prompts, by index.

    images   paths
    prompts  for each image its prompt; no image is twice there with one prompt
    pairs    indices (i, j), i < j, of images with the same prompt: at most `MOST_PAIRS` of a prompt, the
             same ones whenever the same images are read
    """

    images: tuple[Path, ...]
    prompts: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]


def read_candidates(folder: str | os.PathLike, table: str | os.PathLike | None = None) -> Candidates:
    """The images of a folder.

    table   a table with a record for each image or each prompt's images; its paths start at the folder.
            Default: all images of the folder, with the prompts beside or inside them

    An image that is listed again for a prompt counts once. Raises InputError, naming record and image, for an
    image that is missing, damaged or without a prompt, and if no prompt has two images.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"{root} is no folder; expected one with images")
    rows = _from_folder(root) if table is None else _from_table(root, Path(table).expanduser())
    images: list[Path] = []
    prompts: list[str] = []
    seen: set[tuple[str, Path]] = set()
    for where, image, prompt in rows:
        try:
            check_image(image, len(images))
        except ImageRewardError as error:
            raise InputError(f"{where}: {error}") from error
        try:
            str(image.resolve()).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: its path is not valid UTF-8, in which choices are written: rename the file"
            ) from error
        if (key := (prompt, image.resolve())) in seen:
            continue
        seen.add(key)
        images.append(image)
        prompts.append(prompt)
    by_prompt: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(index)
    pairs = [pair for prompt, found in by_prompt.items() for pair in _pairs(found, prompt)]
    if not pairs:
        raise InputError(
            f"{root}: {len(images)} images of {len(by_prompt)} prompts, and none has two images to compare"
        )
    return Candidates(tuple(images), tuple(prompts), tuple(pairs))


def _pairs(images: Sequence[int], prompt: str) -> list[tuple[int, int]]:
    """All pairs of a prompt's images, or `MOST_PAIRS` of them, drawn by the prompt alone."""
    count = math.comb(len(images), 2)
    if count <= MOST_PAIRS:
        return list(combinations(images, 2))
    drawn = sorted(random.Random(prompt).sample(range(count), MOST_PAIRS))
    return [(images[i], images[j]) for i, j in map(_pair, drawn)]


def _pair(number: int) -> tuple[int, int]:
    """The pair (i, j), i < j, with a number from 0 on: (0, 1), (0, 2), (1, 2), (0, 3), ..."""
    j = (1 + math.isqrt(1 + 8 * number)) // 2
    return number - math.comb(j, 2), j


def _from_folder(root: Path) -> list[tuple[str, Path, str]]:
    source = Folder(str(root), root)
    source.columns()  # InputError for a folder without images
    records = (found.record for found in source.records(lambda _: True, ["image"]))
    paths = [root / str(record["image"]) for record in records if isinstance(record, dict)]
    return [(str(path), path, prompt_of(path)) for path in paths]


def _from_table(root: Path, path: Path) -> list[tuple[str, Path, str]]:
    table = open_table(path)
    names = {role: table.find_column(role) for role in ("image", "prompt")}
    if missing := [role for role, name in names.items() if name is None]:
        raise InputError(f"{path} has no column of {' and of '.join(missing)}s: {', '.join(table.columns())}")
    rows = []
    for where, record, _ in read_all(table):
        if isinstance(record, str):
            raise InputError(f"{where}: {record}")
        image, prompt = record.get(names["image"] or ""), record.get(names["prompt"] or "")
        if error := prompt_error(prompt):
            raise InputError(f"{where}, {names['prompt']}: {error}")
        if not isinstance(image, str) or not image:
            raise InputError(f"{where}, {names['image']}: expected a path, found {image!r}")
        rows.append((f"{where}, {names['image']}", root / image, str(prompt)))
    return rows
