"""A table: one file or several of one kind, whose records are numbered through."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagereward.errors import InputError, listing
from imagereward.records.delimited import TAB_SUFFIXES, Delimited
from imagereward.records.json_files import JsonLines, JsonList
from imagereward.records.layouts import Split, layout_of
from imagereward.records.parquet import Parquet
from imagereward.records.record import Found, Reader, Record, Wanted
from imagereward.records.text import check_encoding

TEXT_READERS: dict[str, Callable[[Path, str | None], Reader]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": JsonList,
    ".csv": Delimited,
    **dict.fromkeys(TAB_SUFFIXES, Delimited),
}
SUFFIXES = (*TEXT_READERS, ".parquet")


@dataclass(frozen=True)
class Table:
    """Records of files, in order. They are read from the files each time, and never all at once."""

    name: str
    readers: tuple[Reader, ...]
    encoding: str | None = None
    prompts_beside_images = False  # a prompt is in the record

    def columns(self) -> list[str]:
        """Names of the columns: those of the first file that has records."""
        for reader in self.readers:
            if names := reader.columns():
                return list(names)
        raise InputError(f"{self.name} holds no records: no column has a name")

    def count(self) -> int:
        """How many records there are, unreadable ones included."""
        return sum(reader.count() for reader in self.readers)

    def files(self) -> list[Path]:
        """The files that are read."""
        return [reader.path for reader in self.readers]

    def records(self, wanted: Wanted, columns: Sequence[str] | None = None) -> Generator[Found, None, None]:
        """The records for whose number `wanted` is true, with at least these columns; None: all columns."""
        start = 0
        for reader in self.readers:
            start = yield from reader.records(start, wanted, columns)


def open_table(
    name: str | os.PathLike,
    files: Sequence[Path] | None = None,
    encoding: str | None = None,
    split: bool = True,
) -> Table:
    """The table in `files` (default: the one file `name`), read by their common suffix.

    With `split`, a record of several images becomes one record an image (see layouts.py). `encoding` is that
    of text files; without it a byte order mark decides, and else UTF-8. Raises InputError for files of
    several kinds, an unknown kind, a missing file, and an encoding that is unknown or given for Parquet.
    """
    name = os.fspath(name)
    files = [Path(name).expanduser()] if files is None else files
    if len(suffixes := {file.suffix.lower() for file in files}) > 1:
        raise InputError(f"{name} matches files of several kinds: {listing(sorted(suffixes))}")
    (suffix,) = suffixes
    if suffix not in SUFFIXES:
        raise InputError(f"{name} is no table: its name ends in {suffix!r}; expected {', '.join(SUFFIXES)}")
    check_encoding(encoding)
    readers: list[Reader]
    if suffix == ".parquet":
        if encoding is not None:
            raise InputError(f"encoding={encoding!r} is for text files; {name} is Parquet")
        readers = [Parquet(file) for file in files]
    else:
        readers = [TEXT_READERS[suffix](file, encoding) for file in files]
    if split:
        present = next((found for reader in readers if (found := reader.columns())), {})
        if layout := layout_of(present, name):
            readers = [Split(reader, layout) for reader in readers]
    return Table(name, tuple(readers), encoding)


def read_all(table: Table) -> Iterator[tuple[str, Record, Path]]:
    """(the record as messages call it, the record, its folder) of every record of a table of one file."""
    for number, record, folder in table.records(lambda _: True):
        yield f"{table.name}, record {number}", record, folder
