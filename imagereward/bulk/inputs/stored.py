"""An image inside an archive, by its place there."""

from typing import NamedTuple

from imagereward.errors import ImageReadError
from imagereward.images.encoded import max_bytes


class Stored(NamedTuple):
    """`size` bytes of the file `path` from `offset` on; `name` is what the archive calls them."""

    path: str
    offset: int
    size: int
    name: str

    def read(self) -> bytes:
        """The bytes. ImageReadError for more than a picture may have, and for an archive cut short."""
        if self.size > max_bytes():
            raise ImageReadError(f"{self} has {self.size} bytes; at most {max_bytes():.0f} are read")
        with open(self.path, "rb") as stream:
            stream.seek(self.offset)
            data = stream.read(self.size)
        if len(data) != self.size:
            raise ImageReadError(
                f"{self} ends after {len(data)} of {self.size} bytes: its archive is cut short"
            )
        return data

    def __str__(self) -> str:
        return f"{self.path}/{self.name}"
