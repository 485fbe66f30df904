"""`Source`, the protocol of inputs: tables (`imagereward.records`), folders of images, WebDataset shards."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from imagereward.records import Found, Wanted


class Source(Protocol):
    """An input of rows that is read as a stream, from its beginning, any number of times."""

    @property
    def name(self) -> str:
        """The input as the caller wrote it, for messages."""

    @property
    def prompts_beside_images(self) -> bool:
        """Whether a prompt that is None is in a text file beside the image, or in its metadata."""

    def columns(self) -> list[str]:
        """Names of the input's columns."""

    def count(self) -> int:
        """Number of rows."""

    def files(self) -> Iterable[Path]:
        """Every file that rows are read from."""

    def records(self, wanted: Wanted, columns: Sequence[str]) -> Iterator[Found]:
        """(number, record, folder that its relative paths start at) where `wanted(number)`, in order.

        Rows that are not wanted are skipped cheaply; of the others, at least `columns` are read.
        """
