"""Layouts of published data sets, whose records hold several images: each image becomes a record."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from imagereward.records.columns import USUAL, find_column, folded
from imagereward.records.record import Found, Reader, Record, Records, Wanted

# Columns that may hold a list of images, and those that may hold what people said of each.
LISTS = ("generations", "image_path", "file_path", "images", *USUAL["image"])
RANKS = ("ranking", "rank", "ranks")
PREFERENCE = "human_preference"  # 1 for the preferred image, 0 for others
PAIR = re.compile(r"(.*)_([01])(_.*)?")


class Layout(Protocol):
    """How one record becomes the records of its images, which have the columns "image" and "rank"."""

    @property
    def images(self) -> int | None:
        """Images of every record; None if their number differs."""

    def columns(self) -> list[str]:
        """The columns of an image's record."""

    def sources(self, columns: Sequence[str]) -> list[str]:
        """The columns of the file from which these columns are made."""

    def split(self, record: Record) -> list[Record]:
        """The records of the images, at least one."""

    def folder(self, record: Record, folder: Path) -> Path:
        """Where relative paths of a record start; `folder` is the file's."""


@dataclass(frozen=True)
class Lists:
    """A record has a list of images and perhaps a list of ranks: ImageRewardDB's JSON, HPDv2's JSON.

    `rank` is as in the file, the smaller the better: from 1 in ImageRewardDB, from 0 in HPDv2's test.json.
    Of `human_preference` it is 1 for the preferred image and 2 for others.
    """

    image: str
    ranks: str | None
    others: tuple[str, ...]
    images = None

    def columns(self) -> list[str]:
        return [*self.others, "image", "rank"]

    def sources(self, columns: Sequence[str]) -> list[str]:
        ranks = [self.ranks] if self.ranks and "rank" in columns else []
        return [self.image, *ranks, *(name for name in self.others if name in columns)]

    def split(self, record: Record) -> list[Record]:
        if isinstance(record, str):
            return [record]
        images, ranks = record.get(self.image), record.get(self.ranks or "")
        if not isinstance(images, list) or not images:
            return [f"the record has no list of images under {self.image!r}"]
        if ranks is None:
            ranks = [None] * len(images)
        if not isinstance(ranks, list) or len(ranks) != len(images):
            found = f"{len(ranks)} entries" if isinstance(ranks, list) else type(ranks).__name__
            return [f"the record has {len(images)} images, but {self.ranks!r} has {found}"]
        if self.ranks and folded(self.ranks) == PREFERENCE:
            ranks = [None if rank is None else 1 if rank else 2 for rank in ranks]
        shared = {name: record.get(name) for name in self.others}
        return [{**shared, "image": image, "rank": rank} for image, rank in zip(images, ranks)]

    def folder(self, record: Record, folder: Path) -> Path:
        return folder


@dataclass(frozen=True)
class Pairs:
    """Two images a record, in columns that end in _0 and _1 or hold it inside: Pick-a-Pic.

    The image is `jpg`, or else the address `image_url`. `rank` is 1 for the image with the higher label and 2
    for the other, 1 for both of a tie, None where `has_label` is false.
    """

    names: tuple[str, ...]
    images = 2

    def columns(self) -> list[str]:
        return list(dict.fromkeys([*map(_without_number, self.names), "image", "rank"]))

    def sources(self, columns: Sequence[str]) -> list[str]:
        extra = {"image": {"jpg", "image_url"}, "rank": {"label", "has_label"}}
        wanted = {*columns, *(source for name in columns for source in extra.get(name, ()))}
        if "jpg_0" in self.names and "image_url" not in columns:
            wanted.discard("image_url")
        return [name for name in self.names if _without_number(name) in wanted]

    def split(self, record: Record) -> list[Record]:
        return [record, record] if isinstance(record, str) else [self._image(record, at) for at in (0, 1)]

    def _image(self, record: dict[str, Any], at: int) -> Record:
        found: dict[str, Any] = {}
        for name, value in record.items():
            match = PAIR.fullmatch(name)
            if match is None or int(match[2]) == at:
                found[_without_number(name)] = value
        image = found.get("jpg")
        found["image"] = found.get("image_url") if image is None else image
        own, other = record.get(f"label_{at}"), record.get(f"label_{1 - at}")
        known = record.get("has_label") is not False and own is not None and other is not None
        found["rank"] = 1 + (own < other) if known else None  # type: ignore[operator]
        return found

    def folder(self, record: Record, folder: Path) -> Path:
        return folder


@dataclass(frozen=True)
class FromRoot:
    """ImageRewardDB on the hub: one image a record, its path relative to the repository.

    Its JSON files lie in the folders of their images, so a path `images/train/train_1/a.webp` of a file in
    `ROOT/images/train/train_1` starts at ROOT. A file that lies elsewhere has paths relative to itself.
    """

    names: tuple[str, ...]
    image: str
    images = 1

    def columns(self) -> list[str]:
        return list(self.names)

    def sources(self, columns: Sequence[str]) -> list[str]:
        return list(columns)

    def split(self, record: Record) -> list[Record]:
        return [record]

    def folder(self, record: Record, folder: Path) -> Path:
        path = None if isinstance(record, str) else record.get(self.image)
        if not isinstance(path, str):
            return folder
        above = Path(path).parent.parts
        absolute = folder.absolute()
        inside = bool(above) and absolute.parts[-len(above) :] == above
        return absolute.parents[len(above) - 1] if inside else folder


def layout_of(columns: Mapping[str, bool], where: str) -> Layout | None:
    """The layout of a file with these columns (name -> whether it holds lists); None for a plain table."""
    lists = [name for name, is_list in columns.items() if is_list]
    if image := find_column(lists, "image", where, LISTS):
        ranks = find_column(lists, "rank", where, (*RANKS, PREFERENCE))
        others = tuple(name for name in columns if name not in (image, ranks, "image", "rank"))
        return Lists(image, ranks, others)
    if columns.keys() >= {"jpg_0", "jpg_1"} or columns.keys() >= {"image_0_url", "image_1_url"}:
        return Pairs(tuple(columns))
    hub = [find_column(columns, name, where, (name,)) for name in ("image_path", "prompt_id", "prompt")]
    if None not in hub and find_column(columns, "image", where, ("image",)) is None:
        return FromRoot(tuple(columns), str(hub[0]))
    return None


def _without_number(name: str) -> str:
    match = PAIR.fullmatch(name)
    return match[1] + (match[3] or "") if match else name


@dataclass(frozen=True)
class Split:
    """A reader whose records are split into those of their images."""

    reader: Reader
    layout: Layout

    @property
    def path(self) -> Path:
        """The file."""
        return self.reader.path

    def columns(self) -> dict[str, bool]:
        return dict.fromkeys(self.layout.columns(), False)

    def count(self) -> int:
        if self.layout.images is not None:
            return self.layout.images * self.reader.count()
        found = self.reader.records(0, lambda _: True, self.layout.sources([]))
        return sum(len(self.layout.split(each.record)) for each in found)

    def records(self, start: int, wanted: Wanted, columns: Sequence[str] | None) -> Records:
        read = self.layout.sources(self.layout.columns() if columns is None else columns)
        images = self.layout.images
        if images is None:
            number = start
            for found in self.reader.records(0, lambda _: True, read):
                for record in self.layout.split(found.record):
                    if wanted(number):
                        yield Found(number, record, self.layout.folder(record, found.folder))
                    number += 1
            return number

        def any_wanted(number: int) -> bool:
            return any(wanted(start + number * images + at) for at in range(images))

        reading = self.reader.records(0, any_wanted, read)
        total = 0
        while True:
            try:
                found = next(reading)
            except StopIteration as end:
                total = end.value
                break
            for number, record in enumerate(self.layout.split(found.record), start + found.number * images):
                if wanted(number):
                    yield Found(number, record, self.layout.folder(record, found.folder))
        return start + total * images
