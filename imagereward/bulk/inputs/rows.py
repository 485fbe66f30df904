"""Rows of an input, each with a prompt and an image, and parts: fixed numbers of consecutive rows."""

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

Image = str | bytes | Stored  # a path, an encoded image, or the place of one in an archive

IN_ARCHIVE = re.compile(r"(.+\.tar)/", re.IGNORECASE)


class Row(NamedTuple):
    """One row of the input.

    number       from 0, over all files of the input
    prompt       None if it is beside the image or in its metadata
    image        None only with an error
    image_name   of the output: the image's path, or its path in an archive; None for bytes
    error        why the row cannot be scored; None otherwise
    kept         cells of the columns that are copied, as text
    """

    number: int
    id: str | None
    prompt: str | None
    image: Image | None
    image_name: str | None
    error: str | None
    kept: tuple[str | None, ...]


@dataclass(frozen=True)
class TablePart:
    """Consecutive rows that are read, scored, written and resumed together."""

    index: int
    rows: list[Row]


@dataclass(frozen=True)
class Columns:
    """Names of the input's columns by their role.

    keep              columns to copy
    constant_prompt   the prompt of all rows, instead of a column
    markup            "strip" or "keep": weights and LoRA tags in prompts that generators wrote
    """

    image: str
    prompt: str | None
    id: str | None
    keep: tuple[str, ...] = ()
    constant_prompt: str | None = None
    markup: Markup = "strip"

    @property
    def names(self) -> list[str]:
        """The distinct columns to read."""
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
    """The given columns; for those that are None, the first usual name (`records.columns.USUAL`) present.

    Raises InputError, listing the columns present, if a column is missing or two have the same usual name.
    """
    if constant_prompt is not None and prompt is not None:
        raise InputError("given both a prompt for all rows and a column of prompts: expected one of them")
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

    images   folder that relative image paths start at; None: the folder of each record's table
    out      folder of the output: image names that are relative paths become relative to it, so that the
             output can be read as an input in turn
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


def parts_of(rows: Iterable[Row], size: int) -> Iterator[TablePart]:
    """Group ordered rows into parts: part k holds rows k * size to (k + 1) * size - 1."""
    for index, group in groupby(rows, key=lambda row: row.number // size):
        yield TablePart(index, list(group))


def as_text(value: Any) -> str | None:
    """A value as text that UTF-8 can encode, lists and objects as JSON; None stays None."""
    if value is None:
        return None
    text = (
        json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else str(value)
    )
    return text.encode("utf-8", "backslashreplace").decode()


def _image(value: Any, folder: Path, out: Path) -> tuple[Image | None, str | None, str | None]:
    """(the image, its name in the output, error) of a cell; the error is None if the cell is valid."""
    if isinstance(value, dict):  # as Hugging Face's datasets keep images in Parquet
        place, data = value.get("path"), value.get("bytes")
        if isinstance(data, bytes):
            return data, as_text(place), None
        value = place if data is None else [data]  # of another type than bytes: an error below
    if isinstance(value, bytes):
        return value, None, None
    if isinstance(value, Stored):
        return value, name_in_output(str(value), out), None
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
        return None, name_in_output(path, out), error
    return path, name_in_output(path, out), None


def name_in_output(path: str, out: Path) -> str | None:
    """A picture's path as the output names it: relative to the output's folder `out` if it is relative."""
    if not os.path.isabs(path):
        if os.pardir in Path(path).parts:  # `..` after a linked folder means the parent of its target
            path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        try:
            path = os.path.relpath(path, out)
        except ValueError:  # on another drive of Windows
            path = os.path.abspath(path)
    return as_text(path)


def _prompt(record: dict[str, Any], columns: Columns, beside_images: bool) -> tuple[str | None, str | None]:
    """(prompt, error) of a record; (None, None) if the prompt must be read from the image.

    beside_images   prompts come from text files, which a web UI may have written with its own markup
    """
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
