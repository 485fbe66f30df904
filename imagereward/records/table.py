"""A table: one file or several of one kind, whose records are numbered through."""

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imagereward.errors import InputError, listing
from imagereward.records.columns import find_column
from imagereward.records.delimited import TAB_SUFFIXES, Delimited
from imagereward.records.json_files import JsonLines, JsonList
from imagereward.records.layouts import Split, layout_of
from imagereward.records.parquet import Parquet
from imagereward.records.record import Found, Reader, Record, Records, Wanted
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
    """Records of files, in order. They are read from the files each time, and never all at once.

    `roles` maps a role ("image", "prompt", "id") to the column that its cells are given under. In a file
    without that column, the column that `find_column` finds for the role there stands in for it.
    """

    name: str
    readers: tuple[Reader, ...]
    encoding: str | None = None
    roles: tuple[tuple[str, str], ...] = ()
    prompts_beside_images = False  # a prompt is in the record

    def columns(self) -> list[str]:
        """Names of the columns, those of all files."""
        names = list(dict.fromkeys(name for reader in self.readers for name in reader.columns()))
        if not names:
            raise InputError(f"{self.name} holds no records: no column has a name")
        return names

    def find_column(self, role: str) -> str | None:
        """The role's column in the first file that has one; see `records.find_column`."""
        for reader in self.readers:
            if found := find_column(reader.columns(), role, str(reader.path)):
                return found
        return None

    def with_roles(self, roles: Mapping[str, str | None]) -> "Table":
        """This table with these `roles`; None leaves one out. One file alone needs none."""
        if len(self.readers) == 1:
            return self
        return replace(self, roles=tuple((role, name) for role, name in roles.items() if name is not None))

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
            own = self._stand_ins(reader)
            read = columns if columns is None else [own.get(name, name) for name in columns]
            reading = reader.records(start, wanted, read)
            start = yield from (_renamed(reading, own) if own else reading)

    def _stand_ins(self, reader: Reader) -> dict[str, str]:
        """The columns of `roles` that the file lacks -> those of the same role that it has."""
        if not self.roles:
            return {}
        present = reader.columns()
        where = str(reader.path)
        lacking = ((role, name) for role, name in self.roles if name not in present)
        found = ((name, find_column(present, role, where)) for role, name in lacking)
        return {name: own for name, own in found if own is not None}


def _renamed(reading: Records, own: Mapping[str, str]) -> Records:
    """The same records with the cells of `own`'s values under its keys too."""
    while True:
        try:
            found = next(reading)
        except StopIteration as end:
            return end.value
        if isinstance(record := found.record, dict):
            found = found._replace(record={**record, **{name: record.get(own[name]) for name in own}})
        yield found


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
        layouts = [layout_of(reader.columns(), str(reader.path)) for reader in readers]
        readers = [Split(reader, layout) if layout else reader for reader, layout in zip(readers, layouts)]
    return Table(name, tuple(readers), encoding)


def read_all(table: Table) -> Iterator[tuple[str, Record, Path]]:
    """(the record as messages call it, the record, its folder) of every record of a table of one file."""
    for number, record, folder in table.records(lambda _: True):
        yield f"{table.name}, record {number}", record, folder
