"""WebDataset shards as input: tar files in which neighbours of one name make a row."""

import json
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from imagereward.bulk.folders import SUFFIXES
from imagereward.bulk.stored import Stored
from imagereward.errors import InputError
from imagereward.records import Found, Record, Wanted

# A prompt or a description longer than this is no text: it is not read.
MOST_TEXT = 2**20


@dataclass(frozen=True)
class Shards:
    """Members `key.ext` with one key, up to the first dot of the file name, are a row's columns.

    An image is found under its extension and, the first of a row, under `image`; `txt` is text, and the
    keys of an object in `json` are columns. Images are read from the shard where they are decoded.
    """

    name: str
    paths: tuple[Path, ...]
    prompts_beside_images = True  # `txt`, or the metadata of the image

    def columns(self) -> list[str]:
        for _, record, _ in self.records(lambda number: number == 0, ()):
            if isinstance(record, dict):
                return list(record)
            raise InputError(f"{self.name}, first row: {record}")
        raise InputError(f"{self.name} holds no files")

    def count(self) -> int:
        return sum(1 for _ in self._groups())

    def files(self) -> tuple[Path, ...]:
        return self.paths

    def records(self, wanted: Wanted, columns: Sequence[str]) -> Iterator[Found]:
        for number, (key, members) in enumerate(self._groups()):
            if wanted(number):
                yield Found(number, _record(key, members), self.paths[0].parent)

    def _groups(self) -> Iterator[tuple[str, list[Stored]]]:
        for path in self.paths:
            for key, members in groupby(_members(path), key=lambda stored: _split(stored.name)[0]):
                yield key, list(members)


def _members(path: Path) -> Iterator[Stored]:
    try:
        with tarfile.open(path, "r:") as archive:  # uncompressed: members are read by their offset
            for member in archive:
                if member.isreg():
                    yield Stored(str(path), member.offset_data, member.size, member.name)
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path} cannot be read as an uncompressed tar file: {error}") from error


def _split(name: str) -> tuple[str, str]:
    """(key, extension): the file name is split at its first dot."""
    folder, file = posixpath.split(name)
    stem, _, extension = file.partition(".")
    return posixpath.join(folder, stem), extension.lower()


def _record(key: str, members: list[Stored]) -> Record:
    record: dict = {"__key__": key}
    for member in members:
        extension = _split(member.name)[1]
        if f".{extension}".endswith(SUFFIXES):
            record[extension] = member
            record.setdefault("image", member)
        elif extension in ("txt", "caption", "json"):
            if member.size > MOST_TEXT:
                return f"{member} has {member.size} bytes, too many for text"
            try:
                text = member.read().decode()
                record |= dict(json.loads(text)) if extension == "json" else {extension: text}
            except (ValueError, TypeError, RecursionError) as error:
                return f"{member} cannot be read: {error}"
    return record
