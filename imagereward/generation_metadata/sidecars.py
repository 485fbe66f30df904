"""Reads text files beside an image: captions, and metadata of generators."""

import os
import stat
from io import BufferedReader
from pathlib import Path

from imagereward.generation_metadata.entries import MOST_TEXT, Claim, UnclearPrompt
from imagereward.generation_metadata.interpret import MEANT_AS_JSON
from imagereward.generation_metadata.webui import looks_like_infotext, read_infotext
from imagereward.generation_metadata.writers import parse_json, read_json

CAPTION_FILES = (".txt", ".caption")
JSON_FILES = (".json", ".swarm.json")
SIDECARS = (*CAPTION_FILES, *JSON_FILES)


def read_text(text: str) -> tuple[str | None, Claim | None]:
    """(caption, None) for plain words, (None, claim) for a text that a generator wrote. UnclearPrompt."""
    if not text.strip():
        raise UnclearPrompt("the text is empty")
    data = parse_json(text)
    if isinstance(data, dict):
        claim = read_json(data)
        if claim is None and isinstance(data.get("caption"), str) and data["caption"].strip():
            return data["caption"].strip(), None
        if claim is None:
            raise UnclearPrompt(f"JSON in an unknown layout, with the keys {sorted(map(str, data))[:8]}")
        return None, claim
    if isinstance(data, list) or MEANT_AS_JSON.match(text):
        raise UnclearPrompt("JSON that is damaged, too deeply nested or a list")
    if looks_like_infotext(text):
        return None, read_infotext(text)
    return text.strip(), None


def read_sidecars(image: Path) -> tuple[dict[str, str], list[Claim], list[str]]:
    """({file name: caption}, claims of generators, problems) from the text files beside `image`.

    Raises UnclearPrompt for a caption file that cannot be used. A JSON file may have another purpose, so one
    that is not understood only adds a problem.
    """
    captions: dict[str, str] = {}
    claims: list[Claim] = []
    problems: list[str] = []
    for suffix in SIDECARS:
        path = image.with_suffix(suffix)
        try:
            text = _read_small(path)
            if text is None:
                continue
            caption, claim = read_text(text)
        except UnclearPrompt as error:
            if suffix in CAPTION_FILES:
                raise UnclearPrompt(f"{path.name}: {error}") from error
            problems.append(f"{path.name}: {error}")
            continue
        if caption is not None:
            captions[path.name] = caption
        if claim is not None:
            claims.append(claim._replace(place=path.name))
    return captions, claims, problems


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading. Does not block; OSError for a pipe, a directory or a device."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is a directory, pipe or device, not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _read_small(path: Path) -> str | None:
    """The text of a file; None if it does not exist. UnclearPrompt if it is unreadable or too large."""
    try:
        with open_regular(path) as stream:
            data = stream.read(MOST_TEXT + 1)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UnclearPrompt(f"it cannot be read: {error}") from error
    if len(data) > MOST_TEXT:
        raise UnclearPrompt(f"it has more than {MOST_TEXT} bytes, too many for a prompt")
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnclearPrompt(f"it is not text in UTF-8 or UTF-16: {error}") from error
    if "\0" in text:
        raise UnclearPrompt("it is not text: it has zero bytes")
    return text
