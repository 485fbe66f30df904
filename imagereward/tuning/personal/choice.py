"""Choice and Choices: what a person said about images, and what follows from it."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch

Kind = Literal["rankings", "pairs", "ratings", "labels"]


@dataclass(frozen=True)
class Choice:
    """What was said about the images of one record.

    where    file and record, for messages
    prompt   the prompt
    images   K images: paths, or whatever scorers take
    ranks    K ranks, lower is better, ties allowed; empty for ratings and labels
    value    the rating, or 1 for good and 0 for bad; NaN for rankings and pairs
    margin   by how much the better image's score should be higher, at least 0
    subset   name of a part of the data that is measured alone; "": none
    """

    where: str
    prompt: str
    images: tuple[Any, ...]
    ranks: tuple[int, ...] = ()
    value: float = math.nan
    margin: float = 0.0
    subset: str = ""

    @property
    def decided(self) -> list[tuple[int, int]]:
        """(better, worse) indices of all pairs of images with unequal ranks."""
        found = combinations(range(len(self.ranks)), 2)
        ordered = ((i, j) if self.ranks[i] < self.ranks[j] else (j, i) for i, j in found)
        return [(i, j) for i, j in ordered if self.ranks[i] < self.ranks[j]]


@dataclass(frozen=True)
class Choices:
    """Choices of one kind, and the name of where they are from."""

    kind: Kind
    items: tuple[Choice, ...]
    source: str

    @property
    def compares(self) -> bool:
        """Whether images of a prompt are compared, instead of being judged alone."""
        return self.kind in ("rankings", "pairs")

    def only(self, indices: Iterable[int]) -> "Choices":
        """The choices with these indices."""
        return Choices(self.kind, tuple(self.items[index] for index in indices), self.source)

    @property
    def decided(self) -> "Choices":
        """Those that prefer an image to another; all, if images are judged alone."""
        return replace(self, items=tuple(item for item in self.items if item.decided or not self.compares))

    def digest(self) -> str:
        """SHA-256 of everything that is learned from: prompts, what was said, and the images' contents.

        For choices of a table, whose images are files or encoded bytes.
        """
        digest = hashlib.sha256(self.kind.encode())
        found: dict[Hashable, tuple[int, str]] = {}  # image -> its number and the hash of its content
        for item in self.items:
            for image in item.images:
                if (key := image_key(image)) not in found:
                    data = Path(image).read_bytes() if isinstance(image, str | os.PathLike) else image
                    found[key] = (len(found), hashlib.sha256(data).hexdigest())
            said = [item.prompt, item.ranks, item.value, item.margin, item.subset]
            digest.update(json.dumps([said, [found[image_key(each)] for each in item.images]]).encode())
        return digest.hexdigest()


def image_key(image: Any) -> Hashable:
    """Equal for what is certainly the same image: a path, however it is written, or else equal content."""
    if isinstance(image, str | os.PathLike):
        return os.path.realpath(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, PIL.Image.Image):
        if image.mode in ("P", "PA"):  # whose bytes are places in a palette
            image = image.convert("RGBA")
        return image.mode, image.size, hashlib.sha256(image.tobytes()).digest()
    array = image.detach().cpu().double().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    return array.shape, str(array.dtype), hashlib.sha256(array.tobytes()).digest()


def net_preferences(items: Iterable[Choice]) -> Iterator[int]:
    """For every two images of a prompt: by how many choices one is preferred more often than the other."""
    votes: Counter[tuple[int, int]] = Counter()
    numbers: dict[Hashable, int] = {}  # of (prompt, image)
    for choice in items:
        keys = [(choice.prompt, image_key(image)) for image in choice.images]
        for pair in choice.decided:
            better, worse = (numbers.setdefault(keys[index], len(numbers)) for index in pair)
            votes[min(better, worse), max(better, worse)] += 1 if better < worse else -1
    return iter(votes.values())
