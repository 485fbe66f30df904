"""A row of the data: a prompt, and for some families the pictures that go with it."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import PIL.Image

from imagereward.images.reading import ImageLike, read_image
from imagereward.images.row_pictures import name_row, open_pictures

__all__ = [
    "Request",
    "Row",
    "as_request",
    "digest_of",
    "name_row",
    "open_pictures",
    "prompt_of",
    "prompts_of",
]


@dataclass(frozen=True)
class Request:
    """A prompt with pictures and metadata.

    image     the image that the model changes
    mask      a picture of the image's size, white where the model paints anew
    metadata  the record's other keys, for rewards to read: the number of things to count, for example
    where     the row's name in error messages, such as its file and record; default: it has none. Rows that
              differ in nothing else are equal
    """

    prompt: str
    image: ImageLike | None = None
    mask: ImageLike | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False, repr=False)


# A string is a row that has neither pictures nor metadata.
Row = str | Request


def as_request(row: Row) -> Request:
    """The row as a `Request`; a string becomes a request without pictures and metadata."""
    return Request(row) if isinstance(row, str) else row


def prompt_of(row: Row) -> str:
    """The row's prompt."""
    return row if isinstance(row, str) else row.prompt


def prompts_of(rows: Sequence[Row]) -> list[str]:
    """The prompt of every row."""
    return [prompt_of(row) for row in rows]


def digest_of(rows: Sequence[Row]) -> str:
    """SHA-256 (hex) of the rows' prompts, metadata, and pictures: paths as they are, others by pixels."""
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
    return digest_of_pixels(read_image(picture))


def digest_of_pixels(picture: PIL.Image.Image) -> str:
    """SHA-256 (hex) of all that decides a picture's colours: mode, size, palette, transparency, and data."""
    facts = (picture.mode, picture.size, picture.getpalette(), picture.info.get("transparency"))
    return hashlib.sha256(repr(facts).encode() + picture.tobytes()).hexdigest()


def without_prompt(row: Row) -> Row:
    """The row with an empty prompt and the same pictures and metadata."""
    return "" if isinstance(row, str) else replace(row, prompt="")
