"""What every input becomes: numbered rows of a prompt and an image, in parts of a fixed size."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from imagereward.bulk.sources import Source
from imagereward.bulk.stored import Stored
from imagereward.errors import InputError, listing
from imagereward.generation_metadata import Markup, prompt_of_text
from imagereward.images import address_scheme

Image = str | bytes | Stored  # a path, an encoded image, or where in an archive one is

# Names under which each is looked for where the caller does not say.
USUAL = {
    "image": ("image", "image_path", "path", "file_name", "filename", "file", "img"),
    "prompt": ("prompt", "text", "caption", "txt"),
    "id": ("id", "key", "__key__"),
}


class Row(NamedTuple):
    """One row of the input. Of one that cannot be scored, `error` says why; `image` may then be None.

    `prompt` is None where it is to be found beside the image or inside it. `image_name` is what tables
    call the image: its path, or its place in an archive; None for bytes.
    """

    number: int
    id: str | None
    prompt: str | None
    image: Image | None
    image_name: str | None
    error: str | None
    kept: tuple[str | None, ...]


@dataclass(frozen=True)
class Part:
    """Consecutive rows that are read, scored, written and resumed together."""

    index: int
    rows: list[Row]


@dataclass(frozen=True)
class Columns:
    """Which columns of the input are which. A constant `prompt` stands in for the column.

    `markup` says whether weights and LoRA tags of prompts that generators wrote are stripped or kept.
    """

    image: str
    prompt: str | None
    id: str | None
    keep: tuple[str, ...] = ()
    constant_prompt: str | None = None
    markup: Markup = "strip"

    @property
    def names(self) -> list[str]:
        """The columns to read, each once."""
        names = (self.image, self.prompt, self.id, *self.keep)
        return list(dict.fromkeys(name for name in names if name is not None))


def find_columns(
    source: Source,
    image: str | None,
    prompt: str | None,
    id: str | None,
    keep: Iterable[str],
    constant_prompt: str | None,
    markup: Markup = "strip",
) -> Columns:
    """The given columns, or else the usual ones that are there; InputError listing those present."""
    if constant_prompt is not None and prompt is not None:
        raise InputError("a prompt for all rows and a column of prompts: expected one of them")
    present = source.columns()
    keep = tuple(keep)
    for name in (image, prompt, id, *keep):
        if name is not None and name not in present:
            raise InputError(f"{source.name} has no column {name!r}; it has {listing(present, 40)}")

    def usual(role: str) -> str | None:
        return next((name for name in USUAL[role] if name in present), None)

    image = image or usual("image")
    elsewhere = constant_prompt is not None or source.prompts_beside_images
    prompt = prompt or (None if elsewhere else usual("prompt"))  # else every row's own, of the usual names
    if image is None or (prompt is None and not elsewhere):
        what = "images" if image is None else "prompts"
        raise InputError(f"which column of {source.name} holds {what}? It has {listing(present, 40)}")
    return Columns(image, prompt, id or usual("id"), keep, constant_prompt, markup)


def rows_of(source: Source, columns: Columns, images: Path, wanted) -> Iterator[Row]:
    """The rows for whose number `wanted` is true, in order. Relative paths of images are from `images`."""
    for number, record in source.records(wanted, columns.names):
        if isinstance(record, str):
            yield Row(number, None, None, None, None, record, (None,) * len(columns.keep))
            continue
        image, image_name, image_error = _image(record.get(columns.image), images)
        prompt, prompt_error = columns.constant_prompt, None
        if prompt is None:
            name = columns.prompt or _usual_prompt(record)
            prompt, prompt_error = _prompt(record.get(name), source.prompts_beside_images, columns.markup)
        yield Row(
            number,
            None if columns.id is None else as_text(record.get(columns.id)),
            prompt,
            image,
            image_name,
            image_error or prompt_error,
            tuple(as_text(record.get(name)) for name in columns.keep),
        )


def _usual_prompt(record: dict[str, Any]) -> str:
    """The name of the column that holds this row's prompt, where none is given; empty if there is none."""
    return next((name for name in USUAL["prompt"] if record.get(name) is not None), "")


def parts_of(rows: Iterable[Row], size: int) -> Iterator[Part]:
    """Rows that come in order, grouped: part k holds those numbered k * size up to (k + 1) * size."""
    for index, group in groupby(rows, key=lambda row: row.number // size):
        yield Part(index, list(group))


def as_text(value: Any) -> str | None:
    """A value as text that any file can hold; None stays."""
    if value is None:
        return None
    return str(value).encode("utf-8", "backslashreplace").decode()


def _image(value: Any, images: Path) -> tuple[Image | None, str | None, str | None]:
    if isinstance(value, dict):  # as Hugging Face's datasets keep images in Parquet
        path = value.get("path")
        image, name, error = _image(path if value.get("bytes") is None else value["bytes"], images)
        return image, name if path is None else as_text(path), error
    if isinstance(value, bytes):
        return value, None, None
    if isinstance(value, Stored):
        return value, as_text(value), None
    if isinstance(value, str) and value:
        path = value if address_scheme(value) else os.path.join(images, value)
        return path, as_text(path), None
    return None, None, f"the row has no image: expected a path or bytes, found {type(value).__name__}"


def _prompt(value: Any, beside_images: bool, markup: Markup) -> tuple[str | None, str | None]:
    """(prompt, error). A text beside an image may be a web UI's, and one that is None inside the image."""
    if value is None and beside_images:
        return None, None
    if isinstance(value, str) and beside_images:
        try:
            value = prompt_of_text(value, markup)
        except InputError as error:
            return None, str(error)
    if not isinstance(value, str):
        return None, f"the row has no prompt: expected text, found {type(value).__name__}"
    return value, text_error(value)


def text_error(prompt: str) -> str | None:
    """What is wrong with a prompt that cannot be encoded as text, if anything."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        return f"the prompt is not valid text: {error}"
    return None
