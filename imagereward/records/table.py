"""`Table`: records of one file, or of several files of one kind with consecutive numbers."""

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
    """The records of files, in order, read as a stream each time.

    name      the table as the caller wrote it, for messages
    readers   one for each file
    encoding  of text files; None: by the byte order mark, or else UTF-8
    roles     (role, column) pairs: in a file without that column, the usual column of the role ("image",
              "prompt" or "id") takes its place
    """

    name: str
    readers: tuple[Reader, ...]
    encoding: str | None = None
    roles: tuple[tuple[str, str], ...] = ()
    prompts_beside_images = False  # prompts are in the records

    def columns(self) -> list[str]:
        """Names of the columns of all files. InputError if there are none."""
        names = list(dict.fromkeys(name for reader in self.readers for name in reader.columns()))
        if not names:
            raise InputError(f"{self.name} holds no records: no column has a name")
        return names

    def find_column(self, role: str) -> str | None:
        """The usual column of a role in the first file that has one (`records.find_column`); or None."""
        for reader in self.readers:
            if found := find_column(reader.columns(), role, str(reader.path)):
                return found
        return None

    def with_roles(self, roles: Mapping[str, str | None]) -> "Table":
        """A copy with `roles` {role: column}; None leaves a role out. A single file needs no roles."""
        if len(self.readers) == 1:
            return self
        return replace(self, roles=tuple((role, name) for role, name in roles.items() if name is not None))

    def count(self) -> int:
        """Number of records, including unreadable ones."""
        return sum(reader.count() for reader in self.readers)

    def files(self) -> list[Path]:
        """Paths of the files."""
        return [reader.path for reader in self.readers]

    def records(self, wanted: Wanted, columns: Sequence[str] | None = None) -> Generator[Found, None, None]:
        """The records for whose number `wanted` is true, with at least `columns`; None: all columns."""
        start = 0
        for reader in self.readers:
            own = self._stand_ins(reader)
            read = columns if columns is None else [own.get(name, name) for name in columns]
            reading = reader.records(start, wanted, read)
            start = yield from (_renamed(reading, own) if own else reading)

    def _stand_ins(self, reader: Reader) -> dict[str, str]:
        """{column of `roles` that the file lacks: its own column of the same role}."""
        if not self.roles:
            return {}
        present = reader.columns()
        where = str(reader.path)
        lacking = ((role, name) for role, name in self.roles if name not in present)
        found = ((name, find_column(present, role, where)) for role, name in lacking)
        return {name: own for name, own in found if own is not None}


def _renamed(reading: Records, own: Mapping[str, str]) -> Records:
    """The records with the cells of columns `own[name]` under `name` as well."""
    while True:
        try:
            found = next(reading)
        except StopIteration as end:
            return end.value
        if isinstance(record := found.record, dict):
            found = found._replace(
                record={**record, **{name: record.get(own[name]) for name in own if record.get(name) is None}}
            )
        yield found


def open_table(
    name: str | os.PathLike,
    files: Sequence[Path] | None = None,
    encoding: str | None = None,
    split: bool = True,
) -> Table:
    """Open a table; the files' suffix decides how they are read.

    name      the table as the caller wrote it
    files     default: the single file `name`
    encoding  of text files; default: by the byte order mark, or else UTF-8
    split     whether a record of several images becomes a record for each image (`layouts.py`)

    Raises InputError for files of several kinds, an unknown kind, a missing file, and an encoding that is
    unknown or given for Parquet.
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
    """(name for messages, record, folder that its paths start at) for each record of a table of one file."""
    for number, record, folder in table.records(lambda _: True):
        yield f"{table.name}, record {number}", record, folder
