"""A directory of images as input; prompts are in text files beside the images, or in the images."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagereward.errors import InputError
from imagereward.generation_metadata import SIDECARS
from imagereward.records import Found, Wanted

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")


@dataclass(frozen=True)
class Folder:
    """Every image file under `directory`, in order of its path; `folder` is what it lies in."""

    name: str
    directory: Path
    prompts_beside_images = True

    def columns(self) -> list[str]:
        if next(self._images(), None) is None:
            raise InputError(f"{self.name} has no images; looked for {', '.join(SUFFIXES)}")
        return ["id", "prompt", "image", "folder"]

    def count(self) -> int:
        return sum(1 for _ in self._images())

    def files(self) -> Iterator[Path]:
        return self._walk((*SUFFIXES, *SIDECARS))

    def records(self, wanted: Wanted, columns: Sequence[str]) -> Iterator[Found]:
        for number, path in enumerate(self._images()):
            if wanted(number):
                place = path.relative_to(self.directory)
                folder = place.parent.as_posix()
                record = {"id": place.as_posix(), "prompt": None, "image": str(place), "folder": folder}
                yield Found(number, record, self.directory)

    def _images(self) -> Iterator[Path]:
        return self._walk(SUFFIXES)

    def _walk(self, suffixes: tuple[str, ...]) -> Iterator[Path]:
        for directory, below, names in os.walk(self.directory):
            below.sort()
            yield from (Path(directory, name) for name in sorted(names) if name.lower().endswith(suffixes))
