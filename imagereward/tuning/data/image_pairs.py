"""(row, image) pairs from files or drawn by Shapes, and their batches."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from imagereward import shapes
from imagereward.errors import InputError, listing
from imagereward.images.orientation import upright
from imagereward.images.preprocess import Preprocess
from imagereward.images.reading import read_image
from imagereward.records import Table, open_table, prompt_error, read_all
from imagereward.tuning.data.drawn import MaskedShapes, drawn_preprocess
from imagereward.tuning.data.image_size import CoverCrop, ImageSize
from imagereward.tuning.data.pictures import Images, prompt_column, report_unusable, unreadable
from imagereward.tuning.data.request_pairs import RequestPairs
from imagereward.tuning.data.requests import Row


class Pairs(Images, Protocol):
    """A sequence of (row, image) pairs.

    Item i is a dict of `prompt` (str), `pixels` (uint8 [3, H, W]) and `wrong` (list of wrong prompts, may be
    empty).
    """

    @property
    def rows(self) -> Sequence[Row]:
        """All prompts, with the pictures that the model is shown."""

    @property
    def texts(self) -> list[str]:
        """All prompts."""


def open_pairs(
    data: str,
    size: ImageSize,
    max_bad_share: float,
    *,
    count: int,
    seed: int,
    things: int,
    encoding: str | None = None,
    column: str | None = None,
    inputs: Sequence[str] = (),
) -> Pairs:
    """(row, image) pairs with all images of one size.

    data           path of a table of {text, image} records, or "shapes" for drawn scenes. For a model with
                   `inputs` a table of {prompt, image, mask, target} (`RequestPairs`), or drawn scenes with a
                   mask over one thing
    size           height and width in pixels; images are resized to cover it and cropped at the centre
    max_bad_share  largest share of images that may be missing or damaged, 0..1
    count, seed, things  for "shapes": number of pairs, seed, and most things in a scene
    encoding       encoding of a text file; default: its byte order mark, else UTF-8
    column         the table's column of prompts; default: by the usual names
    inputs         the pictures that the model takes, of "image" and "mask", as `Denoiser.inputs` names them

    Raises InputError for "shapes" as `drawn_preprocess` does, and for a table that `ImagePairs` or
    `RequestPairs` refuses.
    """
    if data == "shapes":
        kind = MaskedShapes if inputs else ShapesPairs
        return kind(count, seed, drawn_preprocess(size, inputs), things)
    if inputs:
        return RequestPairs(data, inputs, CoverCrop(size), max_bad_share, encoding, column)
    return ImagePairs(data, CoverCrop(size), max_bad_share, encoding, column)


WRONG_PROMPTS = 2  # wrong prompts for each image of Shapes


class ImagePairs(Dataset):
    """(prompt, image) pairs from a table in one file (see `imagereward.records`).

    path           the table; paths of images are relative to its folder. Its columns are found by their
                   usual names: `image`, `image_path` …; `prompt`, `text` …. Records may have `wrong`: a list
                   of prompts that describe the image almost correctly, of the same length in every record
    preprocess     resizes and crops an image; its `pixels(image)` is uint8 [3, H, W]. For a generator it is a
                   `CoverCrop`, and images are turned upright by their EXIF orientation
    max_bad_share  largest share of images that may be missing or damaged, 0..1; such images are skipped
    encoding       encoding of a text file; default: its byte order mark, else UTF-8
    column         the table's column of prompts; default: by the usual names

    All images are decoded once to find damaged ones, as in `RankedImages`. Raises InputError naming the file
    and the record without a prompt or a path, and for more damaged images than `max_bad_share` allows.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        preprocess: Preprocess | CoverCrop,
        max_bad_share: float = 0.01,
        encoding: str | None = None,
        column: str | None = None,
    ):
        path = Path(path).expanduser()
        pairs = list(_pairs(open_table(path, encoding=encoding), column))
        if len(numbers := {len(wrong) for _, _, wrong in pairs}) > 1:
            raise InputError(
                f"{path}: records have {listing(sorted(numbers))} wrong prompts; expected as many in each"
            )
        self.preprocess = preprocess
        self.turns = isinstance(preprocess, CoverCrop)
        self.skipped = skipped(path, [image for _, image, _ in pairs], max_bad_share)
        self.pairs = [pair for pair in pairs if str(pair[1]) not in self.skipped]
        if not self.pairs:
            raise InputError(f"{path} holds no pair of a text and a usable image")

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def rows(self) -> Sequence[Row]:
        """All prompts."""
        return self.texts

    @property
    def texts(self) -> list[str]:
        """All prompts."""
        return [prompt for prompt, _, _ in self.pairs]

    @property
    def identity(self) -> str:
        """The preprocessing, and for each pair its prompt and the file's path, size and modification time."""
        files = [
            (text, str(path), path.stat().st_size, path.stat().st_mtime_ns) for text, path, _ in self.pairs
        ]
        return repr((self.preprocess, "upright" if self.turns else "as stored", files))

    def __getitem__(self, index: int) -> dict:
        prompt, path, wrong = self.pairs[index]
        image = read_image(path, index)
        pixels = self.preprocess.pixels(upright(image) if self.turns else image)
        return {"prompt": prompt, "wrong": wrong, "pixels": pixels}


def _pairs(table: Table, column: str | None) -> Iterator[tuple[str, Path, list[str]]]:
    columns: tuple[str | None, str | None] | None = None
    for where, record, folder in read_all(table):
        if isinstance(record, str):
            raise InputError(f"{where}: {record}")
        columns = columns or (prompt_column(table, column), table.find_column("image"))
        prompt, image = (record.get(name or "") for name in columns)
        yield _pair(prompt, image, record.get("wrong") or [], where, folder)


def _pair(prompt: Any, image: Any, wrong: Any, where: str, folder: Path) -> tuple[str, Path, list[str]]:
    """(prompt, path of the image, wrong prompts) of a record; InputError naming it if one is no text."""
    if not isinstance(image, str) or not image:
        raise InputError(f"{where} has no path of an image; expected records of {{text, image}}")
    if not isinstance(wrong, list):
        raise InputError(f"{where}: expected wrong to be a list of prompts")
    for text in (prompt, *wrong):
        if error := prompt_error(text):
            raise InputError(f"{where}: {error}; expected text, and every wrong prompt, to be a string")
    return str(prompt), folder / image, wrong


class ShapesPairs(Dataset):
    """Drawn scenes of Shapes with their prompts, and wrong prompts that differ in one thing.

    Images show exactly what the prompt says, without noise or defects. Pair i is a function of (seed, i)
    and is drawn when it is read.
    """

    def __init__(self, count: int, seed: int, preprocess: Preprocess, most_things: int = shapes.MOST_THINGS):
        self.count, self.seed, self.preprocess, self.most_things = count, seed, preprocess, most_things

    def __len__(self) -> int:
        return self.count

    @property
    def rows(self) -> Sequence[Row]:
        """All prompts."""
        return self.texts

    @property
    def texts(self) -> list[str]:
        """All prompts; no image is drawn for them."""
        return [shapes.prompt(i, self.seed, most_things=self.most_things) for i in range(self.count)]

    @property
    def identity(self) -> str:
        """The count, the seed, the most things in a scene, and the size in pixels."""
        return f"shapes {self.count} {self.seed} {self.most_things} {self.preprocess.size}"

    def __getitem__(self, index: int) -> dict:
        prompt, image = shapes.pair(index, self.seed, size=self.preprocess.size, most_things=self.most_things)
        rng = np.random.default_rng([self.seed, index])
        wrong = [shapes.wrong_prompt(prompt, rng) for _ in range(WRONG_PROMPTS)]
        return {"prompt": prompt, "wrong": wrong, "pixels": self.preprocess.pixels(image)}


def collate_pairs(items: Sequence[dict]) -> dict:
    """A batch of B pairs: `pixels` uint8 [B, 3, H, W], `prompts`, and `wrong` if the pairs have any."""
    pixels = torch.stack([item["pixels"] for item in items])
    batch = {"pixels": pixels, "prompts": [item["prompt"] for item in items]}
    return batch | ({"wrong": [item["wrong"] for item in items]} if items[0]["wrong"] else {})


def skipped(source: str | os.PathLike, images: Sequence[Path], max_bad_share: float) -> dict[str, str]:
    """{path: cause} of the images that are missing or damaged; logs them as a warning.

    Raises InputError if they are more than the share `max_bad_share` (0..1) of all images of `source`.
    """
    images = list(dict.fromkeys(images))
    bad = unreadable(images)
    report_unusable(source, bad.values(), len(images), max_bad_share)
    return bad
