"""Which reader an input needs, and what all readers have in common."""

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
    glob of several of one kind, or of images; a directory of .tar or .parquet files, or one of images.
    Raises InputError, also for a directory that can be read as several of these.
    """
    from imagereward.bulk import folders, shards, tables

    path = Path(given).expanduser()
    name = os.fspath(given)
    files = _files(path, name)
    root = path if path.is_dir() else files[0].parent
    if files and not path.is_file() and all(folders.is_picture(file.name) for file in files):
        root = Path(os.path.commonpath([file.parent for file in files]))
        return folders.Folder(name, root, tuple(files)), root
    if images is not None:
        root = Path(images).expanduser()
    if not files:
        return folders.Folder(name, path), path
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


def _files(path: Path, name: str) -> list[Path]:
    """The files of a table or a glob; none for a directory of images."""
    from imagereward.bulk.directories import matches_of, tables_in

    if path.is_dir():
        return tables_in(path, name)
    if path.is_file():
        return [path]
    if path.exists():
        raise InputError(
            f"{name} is a pipe or a device, and input is read more than once: write a file first"
        )
    if not (found := matches_of(path)):
        raise InputError(f"{name} does not exist; expected a table, a glob of tables or a directory")
    return found
