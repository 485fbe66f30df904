"""Images as thumbnails inside a page, or a placeholder that says why there is none."""

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path

from imagereward.errors import ImageRewardError
from imagereward.images.reading import read_image

SIDE = 256  # pixels of the longer side: sharp at half that width on a phone
QUALITY = 78


@dataclass(frozen=True)
class Picture:
    """A data: URL and the thumbnail's size, or why there is none."""

    url: str = ""
    width: int = 0
    height: int = 0
    missing: str = ""


class Pictures:
    """Thumbnails of the images of a table, each made once. Relative paths begin at `root`."""

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
        """How many of those asked for are not there or cannot be read."""
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
    """In few words, for a space as small as a thumbnail."""
    return "not found" if isinstance(error, FileNotFoundError) else "cannot be read"
