"""WebDataset shards as input: the members of a tar file whose names differ only in extension make a row."""

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

# Most bytes of a member with text or JSON.
MOST_TEXT = 2**20
TEXTS = ("txt", "caption", "text", "prompt")
# Rows whose JSON is parsed to find the names of columns.
FIRST_ROWS = 100
# A component of a file name between dots that belongs to the key, not to the extension: 5, v1, 2024.
NUMBER = re.compile(r"v?\d+", re.IGNORECASE)

MOST_LINKS = 40  # length of a chain of links that is followed

UNENDED = "shards without an end mark (cut off?)"
NO_FILE = "members that are links to nothing, devices or sparse"
FURTHER = "pictures beyond the first of their row (merged)"


class Shard(NamedTuple):
    """The samples of one tar file, and the number of members that are not read, by reason."""

    samples: dict[str, dict[str, list[Stored]]]  # key -> extension -> members of that name, usually one
    skipped: Counter[str]


@dataclass(frozen=True)
class Shards:
    """A `Source`: the members `key.ext` of a tar file that have the same key are the columns of a row.

    Members of a row need not be neighbours. `samples_of` says how a name is split into key and extension.
    Columns: an image under its extension, a row's first image also under `image`; the texts txt, caption,
    text and prompt; the keys of the object in `json`; and __key__. Decoding processes read images from the
    shard themselves.
    """

    name: str
    paths: tuple[Path, ...]
    prompts_beside_images = True  # `txt`, or the metadata of the image

    def columns(self) -> list[str]:
        return self._contents[1]

    def count(self) -> int:
        return self._contents[0]

    def skipped(self) -> Counter[str]:
        """{reason: count} of members that are in no row."""
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
        """(number of rows, names of columns, counts of skipped members) of all shards."""
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
    """The members of a shard by key and extension. Raises InputError for a damaged or compressed tar file."""
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
    """{key: {extension: members}}, in order of each key's first member.

    A name is split at its first dot (`a.seg.png`: key `a`, extension `seg.png`), as WebDataset does.
    It is split at its last dot instead where the first would merge members of different samples: if a number
    stands between the dots (`d.v1.5.png`), if no member has the short key and a plain extension, or if a text
    has the long key (`a.final.txt`).
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
    """Follows symbolic and hard links between members of an archive."""

    def __init__(self, archive: tarfile.TarFile):
        self.archive = archive

    @cached_property
    def names(self) -> dict[str, tarfile.TarInfo]:
        """{name: member}; the last of several members with one name, as tar extracts them."""
        return {posixpath.normpath(member.name): member for member in self.archive.getmembers()}

    def data_of(self, member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        """The member that holds the data: `member`, or the target of its links; None for a broken link."""
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
    """InputError if data follows the end mark, as in concatenated tar files; count a missing end mark."""
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
    """Whether an extension is an image's, including formats whose rows will have an error."""
    return is_picture("x." + extension) or is_other_picture("x." + extension)


def _is_read(extension: str) -> bool:
    return extension in (*TEXTS, "json") or _is_image(extension)


def _columns(key: str, members: dict[str, list[Stored]], with_json: bool) -> Iterator[str]:
    """Names of a row's columns; those in its JSON only `with_json`."""
    if with_json and isinstance(record := _record(key, members), dict):
        yield from record
    for extension in members:
        if _is_image(extension):
            yield from (extension, "image")
        elif extension in TEXTS:
            yield extension


def _record(key: str, members: dict[str, list[Stored]]) -> Record:
    """The cells of a row by column, or its error. Members override keys of the same name in the JSON."""
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
                described = json.loads(text)
                if not isinstance(described, dict):
                    raise ValueError(f"it holds a {type(described).__name__}; expected an object")
            else:
                columns[extension] = text
        except (OSError, ValueError, TypeError, RecursionError) as error:
            return f"{member} cannot be read: {error}"
    # Images that can be decoded come first, and of these `jpg` before `depth.png`.
    images = sorted(filter(_is_image, members), key=lambda each: (not is_picture("x." + each), "." in each))
    first = {"image": columns[images[0]]} if images else {}
    return {**described, **columns, **first}


def _text(data: bytes) -> str:
    return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
