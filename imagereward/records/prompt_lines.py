"""Reads text files with one prompt per line."""

import json
from pathlib import Path

from imagereward.errors import InputError
from imagereward.records.text import MARK, MOST_LINE, check_encoding, read_lines


def read_prompt_lines(path: Path, encoding: str | None = None) -> list[str]:
    """The lines that are not blank, without outer spaces and tabs.

    encoding   default: by the byte order mark, or else UTF-8

    Raises InputError for a file that cannot be read, a line of more than `MOST_LINE` characters, and a line
    that is a JSON object, which belongs into a .jsonl file.
    """
    check_encoding(encoding)
    prompts = []
    for number, line in enumerate(read_lines(path, encoding), 1):
        if line is None:
            raise InputError(f"{path}, line {number}, has more than {MOST_LINE} characters")
        prompt = line.removeprefix(MARK).strip(" \t\r\n")
        if prompt.startswith("{") and _is_object(prompt):
            raise InputError(f"{path}, line {number}, is a JSON object: name a file of such lines .jsonl")
        if prompt.strip():
            prompts.append(prompt)
    return prompts


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
