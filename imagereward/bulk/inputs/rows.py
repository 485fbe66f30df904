"""What every input becomes: numbered rows of a prompt and an image, in parts of a fixed size."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from imagereward.bulk.inputs.source import Source
from imagereward.bulk.inputs.stored import Stored
from imagereward.errors import InputError, listing
from imagereward.generation_metadata import Markup, prompt_of_text
from imagereward.images.reading import address_scheme
from imagereward.records import Table, Wanted, find_column, prompt_error

Image = str | bytes | Stored  # a path, an encoded image, or where in an archive one is

IN_ARCHIVE = re.compile(r"(.+\.tar)/", re.IGNORECASE)


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
    """The given columns, or else the usual ones (`records.columns.USUAL`) that are there.

    Raises InputError, listing the columns present, for a missing one, and for two with one usual name.
    """
    if constant_prompt is not None and prompt is not None:
        raise InputError("a prompt for all rows and a column of prompts: expected one of them")
    present = source.columns()
    keep = tuple(keep)
    for name in (image, prompt, id, *keep):
        if name is not None and name not in present:
            raise InputError(f"{source.name} has no column {name!r}; it has {listing(present, 40)}")

    image = image or _usual(source, "image")
    elsewhere = constant_prompt is not None or source.prompts_beside_images
    prompt = prompt or (None if elsewhere else _usual(source, "prompt"))
    if image is None or (prompt is None and not elsewhere):
        what = "images" if image is None else "prompts"
        raise InputError(f"which column of {source.name} holds {what}? It has {listing(present, 40)}")
    return Columns(image, prompt, id or _usual(source, "id"), keep, constant_prompt, markup)


def _usual(source: Source, role: str) -> str | None:
    if isinstance(source, Table):
        return source.find_column(role)
    return find_column(source.columns(), role, source.name)


def rows_of(
    source: Source, columns: Columns, images: Path | None, out: Path, wanted: Wanted
) -> Iterator[Row]:
    """The rows for whose number `wanted` is true, in order.

    Relative paths of images start at `images`, or where that is None at the folder of the record's own table.
    Those that stay relative to the working directory are named relative to `out`, the folder of the output:
    the output is then read by the same rule.
    """
    out = Path(os.path.realpath(out))
    for number, record, folder in source.records(wanted, columns.names):
        if isinstance(record, str):
            yield Row(number, None, None, None, None, record, (None,) * len(columns.keep))
            continue
        image, image_name, image_error = _image(record.get(columns.image), images or folder, out)
        prompt, prompt_error = columns.constant_prompt, None
        if prompt is None:
            prompt, prompt_error = _prompt(record, columns, source.prompts_beside_images)
        yield Row(
            number,
            None if columns.id is None else as_text(record.get(columns.id)),
            prompt,
            image,
            image_name,
            image_error or prompt_error,
            tuple(as_text(record.get(name)) for name in columns.keep),
        )


def parts_of(rows: Iterable[Row], size: int) -> Iterator[Part]:
    """Rows that come in order, grouped: part k holds those numbered k * size up to (k + 1) * size."""
    for index, group in groupby(rows, key=lambda row: row.number // size):
        yield Part(index, list(group))


def as_text(value: Any) -> str | None:
    """A value as text that any file can hold, lists and objects as JSON; None stays."""
    if value is None:
        return None
    text = (
        json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else str(value)
    )
    return text.encode("utf-8", "backslashreplace").decode()


def _image(value: Any, folder: Path, out: Path) -> tuple[Image | None, str | None, str | None]:
    """(the image, its name in the output, what is wrong with the cell)."""
    if isinstance(value, dict):  # as Hugging Face's datasets keep images in Parquet
        place, data = value.get("path"), value.get("bytes")
        if isinstance(data, bytes):
            return data, as_text(place), None
        value = place if data is None else [data]  # bytes that are none: an error below
    if isinstance(value, bytes):
        return value, None, None
    if isinstance(value, Stored):
        return value, _name(str(value), out), None
    if not isinstance(value, str) or not value:
        found = "an empty cell" if value in (None, "") else type(value).__name__
        return None, None, f"the row has no image: expected a path or bytes, found {found}"
    if "\0" in value:
        return None, as_text(value), "the path of the image holds a NUL character"
    if address_scheme(value):
        return value, as_text(value), None
    path = os.path.join(folder, value)
    if (inside := IN_ARCHIVE.match(path)) and os.path.isfile(inside[1]):
        error = f"{value} is inside an archive: give {inside[1]} itself as the input"
        return None, _name(path, out), error
    return path, _name(path, out), None


def _name(path: str, out: Path) -> str | None:
    if not os.path.isabs(path):
        if os.pardir in Path(path).parts:  # of a folder that may be a link: `..` is where it points to
            path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        try:
            path = os.path.relpath(path, out)
        except ValueError:  # on another drive of Windows
            path = os.path.abspath(path)
    return as_text(path)


def _prompt(record: dict[str, Any], columns: Columns, beside_images: bool) -> tuple[str | None, str | None]:
    """(prompt, error). A text beside an image may be a web UI's, and one that is None inside the image."""
    try:
        there = [name for name, value in record.items() if value is not None]
        value = record.get(columns.prompt or find_column(there, "prompt", "the record") or "")
    except InputError as error:
        return None, str(error)
    if value is None and beside_images:
        return None, None
    if isinstance(value, str) and beside_images:
        try:
            value = prompt_of_text(value, columns.markup)
        except InputError as error:
            return None, str(error)
    return value if isinstance(value, str) else None, prompt_error(value)
