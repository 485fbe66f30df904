"""`Stored`: an image inside an archive, given by its offset and size."""

from typing import NamedTuple

from imagereward.errors import ImageReadError
from imagereward.images.encoded import max_bytes


class Stored(NamedTuple):
    """The `size` bytes at `offset` of the file `path`; `name` is the member's name in the archive."""

    path: str
    offset: int
    size: int
    name: str

    def read(self) -> bytes:
        """Read the bytes. ImageReadError if `size` is above `max_bytes`, and for a truncated archive."""
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
