"""Folders of images as input, from a directory or a glob, with prompts beside or inside the images."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import PIL.Image

from imagereward.bulk.inputs.own_files import COMPANION, is_output
from imagereward.errors import InputError, listing
from imagereward.generation_metadata import SIDECARS
from imagereward.images.encoded import formats
from imagereward.records import Found, Wanted

# Folders that file managers and archivers create; skipped like those whose name begins with a dot.
JUNK = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")
# Suffixes of images that Pillow does not know without a plugin: counted, not read.
OTHER_PICTURES = (".heic", ".heif", ".hif", ".avif", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw")

HIDDEN = "hidden (.*, ._*, __MACOSX …)"
OUTPUTS = "from earlier outputs"
REPEATED = "linked folders that are read elsewhere or contain the input"
UNREADABLE = "folders that cannot be read"


@cache
def picture_suffixes() -> frozenset[str]:
    """Suffixes of the image formats that this package decodes, such as ".png"."""
    known = PIL.Image.registered_extensions()
    return frozenset(suffix for suffix, format in known.items() if format in formats())


@cache
def other_picture_suffixes() -> frozenset[str]:
    """Suffixes of image formats that this package does not decode."""
    pictures = {
        suffix for suffix, format in PIL.Image.registered_extensions().items() if format in PIL.Image.OPEN
    }
    return frozenset({*pictures, *OTHER_PICTURES} - picture_suffixes())


def is_picture(name: str) -> bool:
    """Whether a file name has the suffix of an image format that this package decodes."""
    return _suffix(name) in picture_suffixes()


def is_other_picture(name: str) -> bool:
    """Whether a file name has the suffix of an image format that this package does not decode."""
    return _suffix(name) in other_picture_suffixes()


def is_hidden(name: str) -> bool:
    """Whether a file or folder name begins with a dot or is in `JUNK`."""
    return name.startswith(".") or name in JUNK


@dataclass(frozen=True)
class Folder:
    """A `Source`: a row for every image file under `directory`, in order of paths.

    name        the input as the caller wrote it, for messages
    only        read these files instead, in this order

    Columns are id (the path relative to `directory`), prompt (None: beside or in the image), image and
    folder. Links to folders are followed, except into folders that are read anyway. Hidden files and outputs
    of this package are skipped.
    """

    name: str
    directory: Path
    only: tuple[Path, ...] | None = None
    prompts_beside_images = True

    def columns(self) -> list[str]:
        if next(self._images(), None) is None:
            found = self.skipped()
            there = f"; skipped: {reasons(found)}" if found else ""
            raise InputError(
                f"{self.name} has no images that can be read{there}. "
                f"A quoted glob such as '{self.name}/**/*.parquet' reads tables in folders"
            )
        return ["id", "prompt", "image", "folder"]

    def count(self) -> int:
        return sum(1 for _ in self._images())

    def files(self) -> Iterator[Path]:
        if self.only is not None:
            for path in self.only:
                yield path
                yield from (beside for suffix in SIDECARS if (beside := path.with_suffix(suffix)).exists())
            return
        for directory, names in self.walk(Counter()):
            yield from (Path(directory, name) for name in names if is_picture(name) or _is_sidecar(name))

    def records(self, wanted: Wanted, columns: Sequence[str]) -> Iterator[Found]:
        for number, path in enumerate(self._images()):
            if wanted(number):
                place = path.relative_to(self.directory)
                folder = place.parent.as_posix()
                record = {"id": place.as_posix(), "prompt": None, "image": str(place), "folder": folder}
                yield Found(number, record, self.directory)

    def skipped(self) -> Counter[str]:
        """{reason: count} of files in the directory that are neither an image nor the prompt of one."""
        skipped: Counter[str] = Counter()
        if self.only is None:
            for directory, names in self.walk(skipped):
                beside = {
                    os.path.splitext(name)[0] + end for name in filter(is_picture, names) for end in SIDECARS
                }
                others = (name for name in names if not is_picture(name) and name not in beside)
                skipped.update(reason(Path(directory, name)) for name in others)
        return skipped

    def walk(self, skipped: Counter[str]) -> Iterator[tuple[str, list[str]]]:
        """Yield (folder, sorted names of its files) at any depth; count skipped files in `skipped`."""
        root = os.path.realpath(self.directory)
        seen: set[tuple[int, int]] = set()

        def unreadable(error: OSError) -> None:
            skipped[UNREADABLE] += 1

        for directory, below, names in os.walk(self.directory, onerror=unreadable, followlinks=True):
            kept = []
            for name in sorted(below):
                path = os.path.join(directory, name)
                if is_hidden(name):
                    skipped[HIDDEN] += _files_below(path)
                elif is_output(Path(path)):
                    skipped[OUTPUTS] += _files_below(path)
                elif (status := _status(path)) is None:
                    skipped[UNREADABLE] += 1
                elif _leads_back(path, root) or status in seen:
                    skipped[REPEATED] += 1
                else:
                    seen.add(status)
                    kept.append(name)
            below[:] = kept
            skipped.update(HIDDEN for name in names if is_hidden(name))
            yield directory, sorted(name for name in names if not is_hidden(name))

    def _images(self) -> Iterator[Path]:
        if self.only is not None:
            yield from self.only
            return
        for directory, names in self.walk(Counter()):
            yield from (Path(directory, name) for name in names if is_picture(name))


def _is_sidecar(name: str) -> bool:
    """Whether a file may hold the prompt of an image beside it. The fingerprint of an output does not."""
    return name.lower().endswith(SIDECARS) and COMPANION.search(name) is None


def reason(path: Path) -> str:
    """Why a file that is no image is skipped, in a few words: the key for counting."""
    suffix = _suffix(path.name)
    if is_output(path):
        return OUTPUTS
    if is_other_picture(path.name):
        return f"{suffix} (not decoded here)"
    return f"{suffix} without a picture" if suffix in SIDECARS else suffix or "without a suffix"


def reasons(skipped: Counter[str]) -> str:
    """Counts of skipped files in words: "3 hidden, 1 .heic (not decoded here)"."""
    return listing([f"{count} {reason}" for reason, count in skipped.items()], 20)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _files_below(directory: str) -> int:
    return sum(len(names) for _, _, names in os.walk(directory))


def _leads_back(path: str, root: str) -> bool:
    """Whether `path` links to `root`, to a folder above it, or to a folder below it that is read anyway."""
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    try:
        common = os.path.commonpath([target, root])
    except ValueError:  # on another drive of Windows
        return False
    if common == root:
        return not any(map(is_hidden, Path(target).relative_to(root).parts))
    return common == target


def _status(path: str) -> tuple[int, int] | None:
    """(device, inode), which identify a folder; None if it cannot be read."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
