"""Detects changes of the input during a run and between a run and its resumption.

Names, sizes and modification times identify an input, even on another machine. Within a run, inode and
change time, which programs cannot set back, are compared as well. If only these two differ when a run
resumes, the rows of finished parts are compared with their stored hash.
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

# Share of a run's time that checks of the input's files may take.
MOST_TIME = 0.02
ROWS_DIGEST = b"rows_sha256"  # key in the Parquet metadata of a part: `digest_of` the rows it was made of


@dataclass
class InputWatch:
    """The state of an input's files when a run began, and checks against it. Pickled for other processes."""

    source: Source
    state: str = ""
    _next: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        self.state = self.state or file_state(self.source)

    def check(self, always: bool = False) -> None:
        """Raise InputError if a file of the input has changed since the run began.

        always   True checks in any case; by default a check is skipped where checks would take more than 2 %
                 of the time (a folder of a million images)
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
    """SHA-256 of the names, sizes and modification times of the input's files."""
    return _hash(source, lambda status: (status.st_size, status.st_mtime_ns))


def file_state(source: Source) -> str:
    """Like `identity`, with inode and change time: it changes with any write to the files."""
    return _hash(
        source, lambda status: (status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)
    )


def content_of(image: Image) -> str:
    """SHA-256 of an image's bytes and of text files beside it that may hold its prompt; "" if unreadable."""
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
    """SHA-256 of rows: numbers, ids, prompts, paths or bytes of images, errors, kept columns.

    contents   {image: `content_of` it} for images that are the input itself; empty for tables
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
    root = getattr(source, "directory", None)  # of a folder, whose rows are named by their paths in it
    for file in source.files():
        try:
            found = repr(facts(os.stat(file)))
        except OSError as error:  # for instance a broken link; reading the file reports the error
            found = type(error).__name__
        name = file.name if root is None else file.relative_to(root)
        digest.update(os.fsencode(name) + b"\0" + found.encode() + b"\n")
    return digest.hexdigest()
