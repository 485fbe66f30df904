"""Prompts to train and evaluate on, from a file or a list."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from imagereward.errors import InputError

# The keys under which prompt files keep their text.
TEXT_KEYS = ("prompt", "text", "caption")


def read_prompts(source: str | os.PathLike | Sequence[str]) -> list[str]:
    """Prompts from a list, or a file: `.json`, a list of strings or records; `.jsonl`, one a line; or text.

    Records have a `prompt`, `text` or `caption`. Empty lines of text are left out. Raises InputError naming
    the file and the record that has no prompt, or a file without any.
    """
    if not isinstance(source, str | os.PathLike):
        return _checked([_text(item, f"prompts[{i}]") for i, item in enumerate(source)], "the list")
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
    return _checked([_text(item, f"{path}: record {i}") for i, item in enumerate(items)], str(path))


def _text(item, where: str) -> str:
    if isinstance(item, dict):
        item = next((item[key] for key in TEXT_KEYS if key in item), None)
    if not isinstance(item, str) or not item.strip():
        raise InputError(
            f"{where} has no prompt: expected a string, or a record with {' or '.join(TEXT_KEYS)}"
        )
    return item


def _checked(prompts: list[str], where: str) -> list[str]:
    if not prompts:
        raise InputError(f"{where} holds no prompt")
    return prompts
