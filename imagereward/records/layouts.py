"""Layouts of published data sets with several images per record, and splitting these into single images."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from imagereward.records.columns import USUAL, find_column, folded
from imagereward.records.record import Found, Reader, Record, Records, Wanted

# Columns that may hold a list of images, and columns that may hold their human ranks.
LISTS = ("generations", "image_path", "file_path", "images", *USUAL["image"])
RANKS = ("ranking", "rank", "ranks")
PREFERENCE = "human_preference"  # 1 for the preferred image, 0 for others
PAIR = re.compile(r"(.*)_([01])(_.*)?")


class Layout(Protocol):
    """Splits a record into records of single images with the columns "image" and "rank"."""

    @property
    def images(self) -> int | None:
        """Number of images in every record; None if it differs between records."""

    def columns(self) -> list[str]:
        """The columns of an image's record."""

    def sources(self, columns: Sequence[str]) -> list[str]:
        """The columns of the file that are needed for the given columns of images' records."""

    def split(self, record: Record) -> list[Record]:
        """The records of a record's images, at least one; of a faulty record, its error."""

    def folder(self, record: Record, folder: Path) -> Path:
        """The folder that relative paths of a record start at; `folder` is that of the file."""


@dataclass(frozen=True)
class ListColumns:
    """The layout of ImageRewardDB's and HPDv2's JSON: a list of images and, optionally, a list of ranks.

    image, ranks   names of these columns
    others         columns that all images of a record share

    `rank` is copied from the file, lower is better: from 1 in ImageRewardDB, from 0 in HPDv2's test.json. For
    `human_preference` it is 1 for the preferred image and 2 for the others.
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
            # Once for each image, so that the number of records does not depend on the columns that are read.
            return [f"the record has {len(images)} images, but {self.ranks!r} has {found}"] * len(images)
        if self.ranks and folded(self.ranks) == PREFERENCE:
            ranks = [None if rank is None else 1 if rank else 2 for rank in ranks]
        shared = {name: record.get(name) for name in self.others}
        return [{**shared, "image": image, "rank": rank} for image, rank in zip(images, ranks)]

    def folder(self, record: Record, folder: Path) -> Path:
        return folder


@dataclass(frozen=True)
class PairColumns:
    """The layout of Pick-a-Pic: two images per record, in columns with _0 or _1 at the end or inside.

    The image is `jpg`, or the address `image_url` without it. `rank` is 1 for the image with the higher label
    and 2 for the other; 1 for both of a tie; None if `has_label` is false.
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
        own, other = (_label(record.get(f"label_{place}")) for place in (at, 1 - at))
        labelled = str(record.get("has_label")).lower() != "false"  # text in CSV
        known = labelled and own is not None and other is not None
        found["rank"] = 1 + (own < other) if known else None  # type: ignore[operator]
        return found

    def folder(self, record: Record, folder: Path) -> Path:
        return folder


@dataclass(frozen=True)
class FromRoot:
    """The layout of ImageRewardDB on the hub: one image per record, with paths relative to the repository.

    Its JSON files lie in the folders of their images: the path `images/train/train_1/a.webp` in a file in
    `ROOT/images/train/train_1` starts at ROOT. In a file elsewhere, paths start at its folder.
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
    """The layout of a file; None for a plain table.

    columns   {name: whether its cells are lists}
    where     the file, for messages
    """
    lists = [name for name, is_list in columns.items() if is_list]
    if image := find_column(lists, "image", where, LISTS):
        ranks = find_column(lists, "rank", where, (*RANKS, PREFERENCE))
        others = tuple(name for name in columns if name not in (image, ranks, "image", "rank"))
        return ListColumns(image, ranks, others)
    if columns.keys() >= {"jpg_0", "jpg_1"} or columns.keys() >= {"image_0_url", "image_1_url"}:
        return PairColumns(tuple(columns))
    hub = [find_column(columns, name, where, (name,)) for name in ("image_path", "prompt_id", "prompt")]
    if None not in hub and find_column(columns, "image", where, ("image",)) is None:
        return FromRoot(tuple(columns), str(hub[0]))
    return None


def _label(value: Any) -> float | None:
    """A label as a number; None for a missing one, NaN and anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def _without_number(name: str) -> str:
    match = PAIR.fullmatch(name)
    return match[1] + (match[3] or "") if match else name


@dataclass(frozen=True)
class Split:
    """A reader that splits the records of another reader into records of single images."""

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
