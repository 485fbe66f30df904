"""Pictures as input, of a directory or a glob; prompts are in text files beside them, or inside them."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import PIL.Image

from imagereward.bulk.inputs.own_files import is_output
from imagereward.errors import InputError, listing
from imagereward.generation_metadata import SIDECARS
from imagereward.images.encoded import formats
from imagereward.records import Found, Wanted

# Directories with copies that file managers and archives make, besides those whose name begins with a dot.
JUNK = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")
# Pictures that are not read, or only with a plugin, besides those of Pillow's other formats.
OTHER_PICTURES = (".heic", ".heif", ".hif", ".avif", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw")

HIDDEN = "hidden (.*, ._*, __MACOSX …)"
OUTPUTS = "from earlier outputs"
REPEATED = "linked folders that are read elsewhere or contain the input"
UNREADABLE = "folders that cannot be read"


@cache
def picture_suffixes() -> frozenset[str]:
    """Suffixes of the pictures that can be decoded here."""
    known = PIL.Image.registered_extensions()
    return frozenset(suffix for suffix, format in known.items() if format in formats())


@cache
def other_picture_suffixes() -> frozenset[str]:
    """Suffixes of pictures that are not decoded here."""
    pictures = {
        suffix for suffix, format in PIL.Image.registered_extensions().items() if format in PIL.Image.OPEN
    }
    return frozenset({*pictures, *OTHER_PICTURES} - picture_suffixes())


def is_picture(name: str) -> bool:
    """Whether a file of this name is a picture that can be decoded, by its suffix."""
    return _suffix(name) in picture_suffixes()


def is_other_picture(name: str) -> bool:
    """Whether a file of this name is a picture that cannot be decoded here, by its suffix."""
    return _suffix(name) in other_picture_suffixes()


def is_hidden(name: str) -> bool:
    """Whether a file or directory is one that people do not see."""
    return name.startswith(".") or name in JUNK


@dataclass(frozen=True)
class Folder:
    """Every picture under `directory`, in order of its path, or those of `only`; `folder` is what it lies in.

    Links to directories are followed, except into what is read anyway. Hidden files and outputs are no input.
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
            yield from (
                Path(directory, name) for name in names if is_picture(name) or name.lower().endswith(SIDECARS)
            )

    def records(self, wanted: Wanted, columns: Sequence[str]) -> Iterator[Found]:
        for number, path in enumerate(self._images()):
            if wanted(number):
                place = path.relative_to(self.directory)
                folder = place.parent.as_posix()
                record = {"id": place.as_posix(), "prompt": None, "image": str(place), "folder": folder}
                yield Found(number, record, self.directory)

    def skipped(self) -> Counter[str]:
        """What lies in the directory and is neither a row nor its prompt: reason -> count."""
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
        """(directory, names of its files), in order; hidden ones are counted in `skipped` instead."""
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


def reason(path: Path) -> str:
    """Why a file that is no picture is no row, in a few words, for counting."""
    suffix = _suffix(path.name)
    if is_output(path):
        return OUTPUTS
    if is_other_picture(path.name):
        return f"{suffix} (not decoded here)"
    return f"{suffix} without a picture" if suffix in SIDECARS else suffix or "without a suffix"


def reasons(skipped: Counter[str]) -> str:
    """`3 hidden, 1 .heic (…)`."""
    return listing([f"{count} {reason}" for reason, count in skipped.items()], 20)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _files_below(directory: str) -> int:
    return sum(len(names) for _, _, names in os.walk(directory))


def _leads_back(path: str, root: str) -> bool:
    """Whether this is a link to `root`, to what contains it, or to a directory inside of it that is read."""
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    if os.path.commonpath([target, root]) == root:
        return not any(map(is_hidden, Path(target).relative_to(root).parts))
    return os.path.commonpath([target, root]) == target


def _status(path: str) -> tuple[int, int] | None:
    """What tells this directory from any other; None for one that has just gone."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
