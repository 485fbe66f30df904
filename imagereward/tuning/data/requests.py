"""A row of the data: a prompt, and for some families the pictures that go with it."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import PIL.Image

from imagereward.errors import ImageReadError, ImageTypeError, InputError
from imagereward.images.orientation import upright
from imagereward.images.reading import ImageLike, read_image


@dataclass(frozen=True)
class Request:
    """A prompt with an image to change, and a mask of the same size that is white where to paint anew.

    `metadata` is what else its record holds, for rewards to read: what to count, say.
    """

    prompt: str
    image: ImageLike | None = None
    mask: ImageLike | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


# Where the words are all there is, a string is a row.
Row = str | Request


def as_request(row: Row) -> Request:
    """The row as a record, whatever it brings."""
    return Request(row) if isinstance(row, str) else row


def prompt_of(row: Row) -> str:
    """The row's words."""
    return row if isinstance(row, str) else row.prompt


def prompts_of(rows: Sequence[Row]) -> list[str]:
    """Every row's words."""
    return [prompt_of(row) for row in rows]


def open_pictures(row: Row, inputs: Sequence[str], where: str) -> list[PIL.Image.Image]:
    """The pictures that `inputs` names ("image", "mask"), decoded and turned as their EXIF orientation says.

    diffusers.utils.load_image turns them too. Sizes are compared after that.
    Raises InputError, naming the row by `where`, for one that is missing or unreadable, and for a mask that
    is not of the image's size.
    """
    found = []
    for name in inputs:
        picture = getattr(row, name, None)
        if picture is None:
            raise InputError(f"{where} has no {name}: this model takes {', '.join(('prompt', *inputs))}")
        try:
            found.append(upright(read_image(picture)))
        except (ImageReadError, ImageTypeError) as error:
            of = f" {os.fspath(picture)}" if isinstance(picture, str | os.PathLike) else ""
            raise InputError(f"{where}: its {name}{of} cannot be read: {error}") from error
    sizes = [f"{name} {'x'.join(map(str, each.size))}" for name, each in zip(inputs, found, strict=True)]
    if len({each.size for each in found}) > 1:
        raise InputError(f"{where}: expected pictures of one size, got {', '.join(sizes)} pixels")
    return found


def digest_of(rows: Sequence[Row]) -> str:
    """By which the same rows are known again: their words, metadata, and pictures' paths or pixels."""
    digest = hashlib.sha256()
    for row in map(as_request, rows):
        facts = [row.prompt, dict(row.metadata), *map(_known, (row.image, row.mask))]
        digest.update(json.dumps(facts, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _known(picture: ImageLike | None) -> str | None:
    if picture is None:
        return None
    if isinstance(picture, str | os.PathLike):
        return str(picture)
    return hashlib.sha256(read_image(picture).tobytes()).hexdigest()


def name_row(row: Row, index: int) -> str:
    """How messages call a row: its place and its words."""
    return f"row {index} ({prompt_of(row)!r})"
