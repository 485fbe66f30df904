"""The interface of inputs: tables (`imagereward.records`), folders of images and WebDataset shards."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from imagereward.records import Found, Wanted


class Source(Protocol):
    """An input that can be read from its beginning any number of times, never all at once."""

    @property
    def name(self) -> str:
        """What the caller calls it."""

    @property
    def prompts_beside_images(self) -> bool:
        """Whether a prompt that is None is in a file beside the image, or in the image."""

    def columns(self) -> list[str]:
        """Names of the columns there are."""

    def count(self) -> int:
        """How many rows there are."""

    def files(self) -> Iterable[Path]:
        """Every file whose change would change the rows."""

    def records(self, wanted: Wanted, columns: Sequence[str]) -> Iterator[Found]:
        """The rows for whose number `wanted` is true, in order, each with the folder of its relative paths.

        What is not wanted costs little; of the others at least `columns` are read.
        """
