"""Which reader an input needs, and what all readers have in common."""

import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from imagereward.errors import InputError, listing

Record = dict[str, Any] | str  # a row's columns, or what is wrong with a row that cannot be read
Wanted = Callable[[int], bool]


class Source(Protocol):
    """An input that can be read from its beginning any number of times, never all at once."""

    @property
    def name(self) -> str:
        """What the caller calls it."""

    @property
    def prompts_beside_images(self) -> bool:
        """Whether generators wrote the prompts; one that is None is then beside or inside the image."""

    def columns(self) -> list[str]:
        """Names of the columns there are."""

    def count(self) -> int:
        """How many rows there are."""

    def files(self) -> Iterable[Path]:
        """Every file whose change would change the rows."""

    def records(self, wanted: Wanted, columns: Sequence[str]) -> Iterator[tuple[int, Record]]:
        """(number, record) of the rows for whose number `wanted` is true, in order.

        What is not wanted costs little; of the others at least `columns` are read.
        """


def open_source(given: str | os.PathLike, images: str | os.PathLike | None = None) -> tuple[Source, Path]:
    """(the reader of an input, the directory from which its relative paths of images are).

    A file by its suffix (.jsonl, .ndjson, .csv, .parquet, .json in ImageRewardDB's layout, .tar); a quoted
    glob of several of one kind; a directory of .tar or .parquet files, else one of images. Raises InputError.
    """
    from imagereward.bulk import folders, shards, tables

    path = Path(given).expanduser()
    name = os.fspath(given)
    files = _files(path, name)
    root = path if path.is_dir() else files[0].parent
    if images is not None:
        root = Path(images).expanduser()
    if not files:
        return folders.Folder(name, path), root
    readers: dict[str, Callable[[str, tuple[Path, ...]], Source]] = {
        ".jsonl": tables.JsonLines,
        ".ndjson": tables.JsonLines,
        ".csv": tables.Csv,
        ".parquet": tables.Parquet,
        ".tar": shards.Shards,
        ".json": tables.Rankings,
    }
    if len(suffixes := {file.suffix.lower() for file in files}) > 1:
        raise InputError(f"{name} matches files of several kinds: {listing(sorted(suffixes))}")
    (suffix,) = suffixes
    if suffix not in readers:
        raise InputError(f"{name} is no table this reads; expected {', '.join(readers)} or a directory")
    return readers[suffix](name, tuple(files)), root


def identity(source: Source) -> str:
    """A hash of the names, sizes and times of the input's files: another one means another input."""
    digest = hashlib.sha256()
    for file in source.files():
        try:
            status = file.stat()
        except OSError as error:
            raise InputError(f"{source.name}: {error}") from error
        digest.update(os.fsencode(file.name) + b"\0%d %d\n" % (status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def _files(path: Path, name: str) -> list[Path]:
    """The files of a table; none for a directory of images."""
    if path.is_dir():
        return next((found for kind in ("*.tar", "*.parquet") if (found := sorted(path.glob(kind)))), [])
    if path.is_file():
        return [path]
    found = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    if not found:
        raise InputError(f"{name} does not exist; expected a table, a glob of tables or a directory")
    return found
