"""An image inside an archive, by its place there."""

from typing import NamedTuple


class Stored(NamedTuple):
    """`size` bytes of the file `path` from `offset` on; `name` is what the archive calls them."""

    path: str
    offset: int
    size: int
    name: str

    def read(self) -> bytes:
        """The bytes."""
        with open(self.path, "rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.size)

    def __str__(self) -> str:
        return f"{self.path}/{self.name}"
