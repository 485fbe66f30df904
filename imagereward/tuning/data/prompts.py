"""Prompts to train and evaluate on, with pictures for some families, from a file or a list."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from imagereward.errors import InputError, listing
from imagereward.images.row_pictures import cropped_mask, mask_name
from imagereward.inpainting.layout import is_layout, read_layout
from imagereward.records import (
    SUFFIXES,
    Record,
    find_column,
    open_table,
    prompt_error,
    read_all,
    read_prompt_lines,
    usual_columns,
)
from imagereward.tuning.data.image_size import ImageSize
from imagereward.tuning.data.preprocessed import PreprocessedRow, is_preprocessed, read_preprocessed
from imagereward.tuning.data.requests import Request, Row, open_pictures

# Keys of a record that name pictures; all other keys but the prompt's are metadata.
PICTURES = ("image", "mask")
LINES = (".txt", ".text")  # suffixes of files with a prompt in every line


def read_prompts(
    source: str | os.PathLike | Sequence[Any], column: str | None = None, encoding: str | None = None
) -> list[str]:
    """Prompts from a list of strings, records or requests, or from a file.

    source    a list, or the path of a table (.json, .jsonl, .ndjson, .csv, .tsv, .parquet; see
              `imagereward.records`), of a .txt file with a prompt in every line, whose empty lines are
              skipped, or of a folder with originals/, masks/ and prompts/
    column    the key of a record's prompt; default: the first of `prompt`, `text`, `caption` and `txt` that
              the record has. If any record of a file has several of these keys, one key is chosen for the
              whole file
    encoding  encoding of the file; default: its byte order mark, else UTF-8

    Raises InputError naming the file and the record without a prompt, and for a source without prompts.
    """
    items, column = _items(source, column, encoding)
    return [_prompt(item, where, column)[0] for item, where in items]


def read_rows(
    source: str | os.PathLike | Sequence[Any],
    inputs: Sequence[str],
    column: str | None = None,
    encoding: str | None = None,
    size: ImageSize | None = None,
    latents: Sequence[int] | None = None,
) -> list[Row]:
    """Rows from a list or a file as `read_prompts` takes them, with pictures and metadata.

    A record's `image` (or `image_path`) and `mask` (or `mask_path`) become the row's pictures, and its other
    keys the metadata. A record with neither becomes a string. A folder is read as the layout originals/,
    masks/, prompts/ (see `imagereward.inpainting.layout`), or as another program's preprocessed rows (see
    `imagereward.tuning.data.preprocessed`).

    inputs   the pictures that the model takes, of "image" and "mask". They are decoded once, to find damaged
             ones; other pictures are only passed to rewards
    size     of the images that the model will make; None: not known yet. Then masks are checked as they are
             in their files, and not as the crop to this size leaves them
    latents  shape (C, h, w) of such an image's latents, which those of preprocessed rows must have

    Paths of pictures are relative to the file's folder. Raises InputError as `read_prompts` does, for a
    picture in `inputs` that is missing or unreadable, for a mask of another size than its image, for a mask,
    or what the crop leaves of it, that is empty or white everywhere, and for a preprocessed row of another
    size. All of them name the record.
    """
    folder = Path(source).expanduser().parent if isinstance(source, str | os.PathLike) else Path()
    items, column = _items(source, column, encoding)
    rows = [_row(item, where, column, folder) for item, where in items]
    if not inputs:
        return rows

    def check(row: Row, where: str) -> None:
        if isinstance(row, PreprocessedRow):
            row.conditions(inputs, where, size, latents)
            return
        pictures = open_pictures(row, inputs, where)
        if size is not None and "mask" in inputs:
            cropped_mask(pictures[list(inputs).index("mask")], size, mask_name(row, where))

    with ThreadPoolExecutor(thread_name_prefix="imagereward-check") as pool:
        list(pool.map(check, rows, [where for _, where in items]))
    return rows


def _row(item: Any, where: str, column: str | None, folder: Path) -> Row:
    prompt, key = _prompt(item, where, column)
    if isinstance(item, PreprocessedRow):
        return item
    if isinstance(item, Request):
        names: dict[str, str | None] = dict(zip(PICTURES, PICTURES))
        record: Mapping[str, Any] = {"image": item.image, "mask": item.mask}
        metadata = item.metadata
    elif isinstance(item, Mapping):
        names = {name: find_column(item, name, where, (name, f"{name}_path")) for name in PICTURES}
        record = item
        metadata = {name: value for name, value in item.items() if name not in (key, *names.values())}
    else:
        return prompt
    pictures = {name: _picture(record.get(key or ""), folder) for name, key in names.items()}
    shown = any(picture is not None for picture in pictures.values())
    found = Request(prompt, **pictures, metadata=metadata, where=where)
    return found if shown or metadata else prompt


def _picture(value: Any, folder: Path) -> Any:
    """A picture of a record: a path from `folder`, bytes or an image; None for an empty cell."""
    if isinstance(value, Mapping):  # as Hugging Face's datasets have them
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str | bytes) and not value:
        return None
    return folder / value if isinstance(value, str | os.PathLike) else value


def has_lines(source: str | os.PathLike) -> bool:
    """Whether a file has a prompt in every line, and so no columns."""
    return Path(source).suffix.lower() in LINES


def _items(source: Any, column: str | None, encoding: str | None) -> tuple[list[tuple[Any, str]], str | None]:
    """([(item, its name in error messages)], column of the prompts or None for each record's own)."""
    if not isinstance(source, str | os.PathLike):
        if not source:
            raise InputError("the list holds no prompt")
        return [(item, f"prompts[{i}]") for i, item in enumerate(source)], column
    path = Path(source).expanduser()
    if is_preprocessed(path):
        items: list[tuple[Any, str]] = list(read_preprocessed(path))
    elif is_layout(path):
        rows = read_layout(path)
        # Absolute, because paths of records begin in the folder beside.
        items = [(Request(row.prompt, row.image.absolute(), row.mask.absolute()), row.where) for row in rows]
    elif has_lines(path):
        lines = read_prompt_lines(path, encoding)
        items = [(line, f"{path}: record {i}") for i, line in enumerate(lines)]
        if column is not None:
            raise InputError(f"{path} has a prompt a line and no columns; leave out the column {column!r}")
    elif path.suffix.lower() in SUFFIXES:
        table = open_table(path, encoding=encoding, split=False)
        items = [(_readable(record, where), where) for where, record, _ in read_all(table)]
        # Where some records have a prompt and a caption, one with a caption alone has no prompt.
        if column is None and any(len(usual_columns(item, "prompt")) > 1 for item, _ in items):
            column = table.find_column("prompt")
    else:
        raise InputError(
            f"{path} cannot be read as prompts: expected a name that ends in "
            f"{', '.join((*LINES, *SUFFIXES))}, or a folder with originals/, masks/ and prompts/"
        )
    if not items:
        raise InputError(f"{path} holds no prompt")
    return items, column


def _readable(record: Record, where: str) -> Mapping[str, Any]:
    if isinstance(record, str):
        raise InputError(f"{where} has no prompt: {record}")
    return record


def _prompt(item: Any, where: str, column: str | None) -> tuple[str, str | None]:
    """(the item's prompt, the record's key that holds the prompt; None for an item without keys)."""
    key, value = None, item
    if isinstance(item, Request):
        value = item.prompt
    elif isinstance(item, Mapping):
        key = column or find_column(item, "prompt", where)
        if key is None or key not in item:
            expected = repr(column) if column else "prompt or text or caption"
            raise InputError(
                f"{where} has no prompt: expected a string, or a record with {expected}; "
                f"it has {listing(item, 40)}"
            )
        value = item[key]
    if (error := prompt_error(value)) or not value.strip():
        raise InputError(f"{where} has no prompt: {error or 'it is blank'}")
    return value, key
