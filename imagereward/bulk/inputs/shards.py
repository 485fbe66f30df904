"""WebDataset shards as input: tar files whose members of one name, up to the extension, make a row."""

import json
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from imagereward.bulk.inputs.folders import HIDDEN, is_hidden, is_other_picture, is_picture
from imagereward.bulk.inputs.stored import Stored
from imagereward.errors import InputError
from imagereward.records import Found, Record, Wanted

# A prompt or a description longer than this is no text: it is not read.
MOST_TEXT = 2**20
TEXTS = ("txt", "caption", "text", "prompt")
# Rows whose JSON is looked at for names of columns.
FIRST_ROWS = 100
# A part of a file name between dots that is no extension: 5, v1, 2024.
NUMBER = re.compile(r"v?\d+", re.IGNORECASE)

MOST_LINKS = 40  # from link to link

UNENDED = "shards without an end mark (cut off?)"
NO_FILE = "members that are links to nothing, devices or sparse"
FURTHER = "pictures beyond the first of their row (merged)"


class Shard(NamedTuple):
    """The samples of a tar file, key -> members, and what of it is not read."""

    samples: dict[str, dict[str, list[Stored]]]  # key -> extension -> members of that name, usually one
    skipped: Counter[str]


@dataclass(frozen=True)
class Shards:
    """Members `key.ext` of one key are a row's columns, wherever in their shard they are.

    The key is the file name up to its first dot, as in WebDataset, but where numbers follow (`d.v1.5.png`)
    or where no member ends there: see `samples_of`. An image is found under its extension and, the first of
    a row, under `image`; txt, caption, text and prompt are text, and the keys of an object in `json` are
    columns. Images are read from the shard where they are decoded.
    """

    name: str
    paths: tuple[Path, ...]
    prompts_beside_images = True  # `txt`, or the metadata of the image

    def columns(self) -> list[str]:
        return self._contents[1]

    def count(self) -> int:
        return self._contents[0]

    def skipped(self) -> Counter[str]:
        """Members that are in no row: reason -> count."""
        return self._contents[2]

    def files(self) -> tuple[Path, ...]:
        return self.paths

    def records(self, wanted: Wanted, columns: Sequence[str]) -> Iterator[Found]:
        number = 0
        for path in self.paths:
            for key, members in read_shard(path).samples.items():
                if wanted(number):
                    yield Found(number, _record(key, members), path.parent)
                number += 1

    @cached_property
    def _contents(self) -> tuple[int, list[str], Counter[str]]:
        """(rows, names of columns, what is skipped) of all shards."""
        count, skipped, names = 0, Counter[str](), {"__key__": None}
        for path in self.paths:
            shard = read_shard(path)
            skipped += shard.skipped
            for key, members in shard.samples.items():
                names.update(dict.fromkeys(_columns(key, members, count < FIRST_ROWS)))
                count += 1
        if not count:
            raise InputError(f"{self.name} holds no files")
        return count, list(names), skipped


def read_shard(path: Path) -> Shard:
    """The members of a shard by their key and extension. Raises InputError for what is no sound tar file."""
    skipped: Counter[str] = Counter()
    try:
        with tarfile.open(path, "r:") as archive:  # uncompressed: members are read by their offset
            samples = samples_of(_members(archive, path, skipped))
            _check_end(archive, path, skipped)
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path} cannot be read as an uncompressed tar file: {error}") from error
    for members in samples.values():
        skipped[FURTHER] += max(0, sum(map(_is_image, members)) - 1)
        skipped.update(f".{name} (no picture, no text)" for name in members if not _is_read(name))
    return Shard(samples, +skipped)


def samples_of(members: Iterable[Stored]) -> dict[str, dict[str, list[Stored]]]:
    """Members by key and extension, in the order in which keys come first.

    A name is split at its first dot (`a.seg.png`: key `a`, extension `seg.png`), as WebDataset does.
    It is split at its last dot instead where that would merge what does not belong together: if a number
    stands between the dots (`d.v1.5.png`), if no member is called by the short key alone, or if there is
    a text by the long one (`a.final.txt`).
    """
    every = [(member, *_split(member.name)) for member in members]
    plain = {key for _, key, extension in every if "." not in extension}
    told = {posixpath.splitext(member.name)[0] for member, _, extension in every if _is_text(extension)}
    samples: dict[str, dict[str, list[Stored]]] = {}
    for member, key, extension in every:
        long_key, dot, last = member.name.rpartition(".")
        between = extension.split(".")[:-1]
        if dot and between and (any(map(NUMBER.fullmatch, between)) or key not in plain or long_key in told):
            key, extension = long_key, last.lower()
        samples.setdefault(key, {}).setdefault(extension, []).append(member)
    return samples


def _members(archive: tarfile.TarFile, path: Path, skipped: Counter[str]) -> Iterator[Stored]:
    links = _Links(archive)
    for member in archive:
        name = posixpath.normpath(member.name)
        if member.isdir():
            continue
        if any(is_hidden(part) for part in name.split("/") if part != ".."):
            skipped[HIDDEN] += 1
            continue
        data = links.data_of(member)
        if data is None or not data.isreg() or data.issparse():
            skipped[NO_FILE] += 1
        else:
            yield Stored(str(path), data.offset_data, data.size, name)


class _Links:
    """Finds the members that links in an archive point to."""

    def __init__(self, archive: tarfile.TarFile):
        self.archive = archive

    @cached_property
    def names(self) -> dict[str, tarfile.TarInfo]:
        """Every member by its name; of several of one name, the last."""
        return {posixpath.normpath(member.name): member for member in self.archive.getmembers()}

    def data_of(self, member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        """The member that holds the data: itself, or what it is a link to; None for a link to nothing."""
        for _ in range(MOST_LINKS):
            if not (member.issym() or member.islnk()):
                return member
            target = member.linkname
            if member.issym():
                target = posixpath.join(posixpath.dirname(member.name), target)
            found = self.names.get(posixpath.normpath(target))
            if found is None:
                return None
            member = found
        return None


def _check_end(archive: tarfile.TarFile, path: Path, skipped: Counter[str]) -> None:
    """InputError if data follows the end mark, as in tar files that were joined: tarfile stops there."""
    with open(path, "rb") as stream:
        stream.seek(archive.offset)
        ended = False
        while block := stream.read(2**20):
            ended = True
            if block.strip(b"\0"):
                raise InputError(
                    f"{path} cannot be read beyond byte {archive.offset}: it is damaged there, or consists "
                    "of several tar files, which must be given one by one"
                )
    skipped[UNENDED] += not ended


def _split(name: str) -> tuple[str, str]:
    """(key, extension): the file name is split at its first dot."""
    folder, file = posixpath.split(name)
    stem, _, extension = file.partition(".")
    return posixpath.join(folder, stem), extension.lower()


def _is_text(extension: str) -> bool:
    return extension.rpartition(".")[2] in TEXTS


def _is_image(extension: str) -> bool:
    """Whether this is an image, also one that cannot be decoded here: its row then says so."""
    return is_picture("x." + extension) or is_other_picture("x." + extension)


def _is_read(extension: str) -> bool:
    return extension in (*TEXTS, "json") or _is_image(extension)


def _columns(key: str, members: dict[str, list[Stored]], with_json: bool) -> Iterator[str]:
    """Names of a row's columns; those in its JSON only if asked for."""
    if with_json and isinstance(record := _record(key, members), dict):
        yield from record
    for extension in members:
        if _is_image(extension):
            yield from (extension, "image")
        elif extension in TEXTS:
            yield extension


def _record(key: str, members: dict[str, list[Stored]]) -> Record:
    """The columns of a row, or what is wrong with it. A member goes before a key of that name in the JSON."""
    columns: dict = {"__key__": key}
    described: dict = {}
    for extension, (member, *others) in members.items():
        if not _is_read(extension):
            continue
        if others:
            return f"{member.path} has {len(others) + 1} members {key}.{extension}: which one is meant?"
        if _is_image(extension):
            columns[extension] = member
            continue
        if member.size > MOST_TEXT:
            return f"{member} has {member.size} bytes, too many for text"
        try:
            text = _text(member.read())
            if extension == "json":
                described = dict(json.loads(text))
            else:
                columns[extension] = text
        except (OSError, ValueError, TypeError, RecursionError) as error:
            return f"{member} cannot be read: {error}"
    images = sorted(filter(_is_image, members), key=lambda extension: not is_picture("x." + extension))
    first = {"image": columns[images[0]]} if images else {}  # one that can be decoded goes first
    return {**described, **columns, **first}


def _text(data: bytes) -> str:
    return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
