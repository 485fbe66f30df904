"""Whether the input is still the one that a run began with.

Names, sizes and modification times tell one input from another, also on another machine. Within a run,
inode and change time are compared as well, which no program can set back. A run that goes on after
another one and finds only these changed compares the rows of the finished parts with a hash of them.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imagereward.bulk.inputs.rows import Image, Row
from imagereward.bulk.inputs.source import Source
from imagereward.bulk.inputs.stored import Stored
from imagereward.errors import InputError
from imagereward.generation_metadata import SIDECARS
from imagereward.generation_metadata.sidecars import open_regular

# A check of many files may take this share of the time since the one before it.
MOST_TIME = 0.02
ROWS_DIGEST = b"rows_sha256"  # in the metadata of a part: the hash of the rows that it was made of


@dataclass
class InputWatch:
    """The state of an input's files at the beginning of a run; it travels to other processes."""

    source: Source
    state: str = ""
    _next: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        self.state = self.state or file_state(self.source)

    def check(self, always: bool = False) -> None:
        """Raise InputError if a file of the input is not as it was.

        Unless `always`, an input whose check is slow (a folder of a million images) is not checked each time.
        """
        began = time.monotonic()
        if began < self._next and not always:
            return
        if file_state(self.source) != self.state:
            raise InputError(
                f"{self.source.name} changed while it was read: rows would be missing, doubled or of two "
                "versions. Run again once nothing writes to it any more; finished parts are kept only if "
                "their rows are unchanged"
            )
        self._next = time.monotonic() + (time.monotonic() - began) / MOST_TIME


def identity(source: Source) -> str:
    """A hash of the names, sizes and modification times of the input's files."""
    return _hash(source, lambda status: (status.st_size, status.st_mtime_ns))


def file_state(source: Source) -> str:
    """Like `identity`, with inode and change time: the same only if nothing wrote to the files at all."""
    return _hash(
        source, lambda status: (status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)
    )


def content_of(image: Image) -> str:
    """A hash of an image's bytes and of the files that may hold its prompt; empty if it cannot be read."""
    digest = hashlib.sha256()
    try:
        if isinstance(image, bytes | Stored):
            digest.update(image if isinstance(image, bytes) else image.read())
            return digest.hexdigest()
        with open_regular(Path(image)) as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    except (OSError, ValueError):
        return ""
    for suffix in SIDECARS:
        with (
            contextlib.suppress(OSError, ValueError),
            open_regular(Path(image).with_suffix(suffix)) as stream,
        ):
            digest.update(suffix.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def digest_of(rows: Iterable[Row], contents: Mapping[Image, str]) -> str:
    """A hash of what was read of rows: numbers, ids, prompts, paths or bytes of images, kept columns.

    contents   `content_of` those images that are part of the input itself
    """
    digest = hashlib.sha256()
    for row in rows:
        image = row.image
        if isinstance(image, bytes):
            image = hashlib.sha256(image).hexdigest()
        elif isinstance(image, Stored):
            image = image.name
        content = "" if row.image is None else contents.get(row.image, "")
        described = (row.number, row.id, row.prompt, image, content, row.error, row.kept)
        digest.update(repr(described).encode("utf-8", "backslashreplace") + b"\n")
    return digest.hexdigest()


def _hash(source: Source, facts: Callable[[os.stat_result], tuple[int, ...]]) -> str:
    digest = hashlib.sha256()
    for file in source.files():
        try:
            found = repr(facts(os.stat(file)))
        except OSError as error:  # such as a link to nothing; whoever reads the file says what is wrong
            found = type(error).__name__
        digest.update(os.fsencode(file.name) + b"\0" + found.encode() + b"\n")
    return digest.hexdigest()
