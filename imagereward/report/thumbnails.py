"""Makes thumbnails of a report's images as data: URLs; images that cannot be read get a reason instead."""

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path

from imagereward.errors import ImageRewardError
from imagereward.images.reading import read_image

SIDE = 256  # pixels of the longer side; phones show it at about half that width
QUALITY = 78  # of WebP, 0 to 100


@dataclass(frozen=True)
class Picture:
    """A thumbnail as data: URL with its size in pixels; or, in `missing`, why there is none."""

    url: str = ""
    width: int = 0
    height: int = 0
    missing: str = ""


class Thumbnails:
    """Thumbnails by image path, each made once. Relative paths start at `root`, default: the working
    directory."""

    def __init__(self, root: str | os.PathLike | None = None):
        self.root = Path(root or ".").expanduser()
        self.made: dict[str, Picture] = {}

    def __getitem__(self, image: str | None) -> Picture:
        if image is None:
            return Picture(missing="the table has no path of it")
        if image not in self.made:
            self.made[image] = self._make(image)
        return self.made[image]

    @property
    def missing(self) -> int:
        """Number of requested images that do not exist or cannot be read."""
        return sum(bool(picture.missing) for picture in self.made.values())

    def _make(self, image: str) -> Picture:
        path = self.root / image
        try:
            picture = read_image(path)
            if picture.mode in ("P", "PA"):
                picture = picture.convert("RGBA")
            picture.thumbnail((SIDE, SIDE))
            picture = picture.convert("RGB")
        except ImageRewardError as error:
            return Picture(missing=_reason(path, error))
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=QUALITY, method=4)
        url = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        return Picture(url, *picture.size)


def _reason(path: Path, error: ImageRewardError) -> str:
    """Why an image has no thumbnail, in two or three words."""
    return "not found" if isinstance(error, FileNotFoundError) else "cannot be read"
