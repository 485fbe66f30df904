"""Prompts to train and evaluate on, with pictures for some families, from a file or a list."""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from imagereward.errors import InputError
from imagereward.tuning.rows import Request, Row, open_pictures

# The keys under which prompt files keep their text.
TEXT_KEYS = ("prompt", "text", "caption")
# What of a record is no metadata.
PICTURES = ("image", "mask")


def read_prompts(source: str | os.PathLike | Sequence[Any]) -> list[str]:
    """Prompts from a list, or a file: `.json`, a list of strings or records; `.jsonl`, one a line; or text.

    Records have a `prompt`, `text` or `caption`. Empty lines of text are left out. Raises InputError naming
    the file and the record that has no prompt, or a file without any.
    """
    return [_text(item, where) for item, where in _items(source)]


def read_rows(source: str | os.PathLike | Sequence[Any], inputs: Sequence[str]) -> list[Row]:
    """What `read_prompts` reads, with each record's pictures ("image", "mask") and metadata, its other keys.

    Paths are relative to the file. The pictures that `inputs` names are decoded once; others are for rewards
    to read. Raises InputError as `read_prompts` does, and for those that are missing or unreadable, or a mask
    that is not of its image's size.
    """
    folder = Path(source).expanduser().parent if isinstance(source, str | os.PathLike) else Path()
    items = _items(source)
    rows: list[Row] = [
        _row(_text(item, where), {name: _picture(item, name, folder) for name in PICTURES}, _metadata(item))
        for item, where in items
    ]
    if not inputs:
        return rows

    def check(row: Row, where: str) -> None:
        open_pictures(row, inputs, where)

    with ThreadPoolExecutor(thread_name_prefix="imagereward-check") as pool:
        list(pool.map(check, rows, [where for _, where in items]))
    return rows


def _row(prompt: str, pictures: dict[str, Any], metadata: Mapping[str, Any]) -> Row:
    shown = any(picture is not None for picture in pictures.values())
    return Request(prompt, **pictures, metadata=metadata) if shown or metadata else prompt


def _metadata(item) -> Mapping[str, Any]:
    if isinstance(item, Request):
        return item.metadata
    if not isinstance(item, Mapping):
        return {}
    key = next(key for key in TEXT_KEYS if key in item)
    return {name: value for name, value in item.items() if name not in (key, *PICTURES)}


def _picture(item, name: str, folder: Path):
    found = item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)
    return folder / found if isinstance(found, str | os.PathLike) else found


def _items(source) -> list[tuple[Any, str]]:
    """What the list or the file holds, and what messages call each of them."""
    if not isinstance(source, str | os.PathLike):
        if not source:
            raise InputError("the list holds no prompt")
        return [(item, f"prompts[{i}]") for i, item in enumerate(source)]
    path = Path(source).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            items = json.loads(text)
        elif path.suffix == ".jsonl":
            items = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            items = [line.strip() for line in text.splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; expected prompts as .json, .jsonl or text") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as prompts: {error}") from error
    if not isinstance(items, list):
        raise InputError(f"{path} holds a {type(items).__name__}; expected a list of prompts")
    if not items:
        raise InputError(f"{path} holds no prompt")
    return [(item, f"{path}: record {i}") for i, item in enumerate(items)]


def _text(item, where: str) -> str:
    if isinstance(item, Request):
        item = item.prompt
    if isinstance(item, dict):
        item = next((item[key] for key in TEXT_KEYS if key in item), None)
    if not isinstance(item, str) or not item.strip():
        raise InputError(
            f"{where} has no prompt: expected a string, or a record with {' or '.join(TEXT_KEYS)}"
        )
    return item
