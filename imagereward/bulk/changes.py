"""Whether the input is still the one that a run began with.

Names, sizes and modification times tell one input from another, also on another machine. Within a run,
inode and change time are compared as well, which no program can set back. A run that goes on after
another one and finds only these changed compares the rows of the finished parts with a hash of them.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from imagereward.bulk.rows import Row
from imagereward.bulk.sources import Source
from imagereward.bulk.stored import Stored
from imagereward.errors import InputError

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


def digest_of(rows: Iterable[Row]) -> str:
    """A hash of what was read of rows: numbers, ids, prompts, paths or bytes of images, kept columns."""
    digest = hashlib.sha256()
    for row in rows:
        image = row.image
        if isinstance(image, bytes):
            image = hashlib.sha256(image).hexdigest()
        elif isinstance(image, Stored):
            image = image.name
        described = (row.number, row.id, row.prompt, image, row.error, row.kept)
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
