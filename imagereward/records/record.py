"""A record of a table, and the interface of the readers of single files."""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

Record: TypeAlias = dict[str, Any] | str  # the cells by column, or why the record cannot be read
Wanted: TypeAlias = Callable[[int], bool]  # whether the record of a number is to be yielded


class Found(NamedTuple):
    """A record, its number in the input (from 0), and the folder from which its relative paths start."""

    number: int
    record: Record
    folder: Path


# Yields the wanted records in order and returns the number of the first record after this file.
Records: TypeAlias = Generator[Found, None, int]


class Reader(Protocol):
    """One file of records. It can be read from its beginning any number of times."""

    @property
    def path(self) -> Path:
        """The file."""

    def columns(self) -> dict[str, bool]:
        """Names of the columns, in order, and whether each holds lists. Empty for a file without records."""

    def count(self) -> int:
        """How many records there are, unreadable ones included."""

    def records(self, start: int, wanted: Wanted, columns: Sequence[str] | None) -> Records:
        """The records numbered from `start` for which `wanted` is true; None reads all columns."""


def prompt_error(value: Any) -> str | None:
    """Why a cell cannot be a prompt, or None for one that can: text without NUL that UTF-8 can encode."""
    if not isinstance(value, str):
        found = "an empty cell" if value is None else type(value).__name__
        return f"the row has no prompt: expected text, found {found}"
    if "\0" in value:
        return "the prompt is not valid text: it holds a NUL character"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"the prompt is not valid text: {error}{_hint(value)}"
    return None


def _hint(text: str) -> str:
    """What to do about bytes that the file's encoding does not have: they were read as U+DC80 to U+DCFF."""
    foreign = any("\udc80" <= character <= "\udcff" for character in text)
    return "; name the encoding of the file, such as encoding=cp1252" if foreign else ""
