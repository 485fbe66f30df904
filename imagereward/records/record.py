"""Records of tables, and `Reader`, the protocol of the readers of single files."""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

Record: TypeAlias = dict[str, Any] | str  # {column: cell}, or the error of a record that cannot be read
Wanted: TypeAlias = Callable[[int], bool]  # whether the caller needs the record with this number


class Found(NamedTuple):
    """A record, its number in the input (from 0), and the folder that its relative paths start at."""

    number: int
    record: Record
    folder: Path


# Yields wanted records in order; returns the number that follows the file's last record.
Records: TypeAlias = Generator[Found, None, int]


class Reader(Protocol):
    """Reads one file as a stream of records, from its beginning, any number of times."""

    @property
    def path(self) -> Path:
        """The file."""

    def columns(self) -> dict[str, bool]:
        """{column: whether its cells are lists}, in order; empty for a file without records."""

    def count(self) -> int:
        """Number of records, including unreadable ones."""

    def records(self, start: int, wanted: Wanted, columns: Sequence[str] | None) -> Records:
        """The records, numbered from `start`, for which `wanted(number)` is true.

        columns   the columns to read at least; None: all
        """


def prompt_error(value: Any) -> str | None:
    """Why a value cannot be a prompt; None for text without NUL characters that UTF-8 can encode."""
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
    """Advice for undecodable bytes, which `read_lines` turned into U+DC80 to U+DCFF; else ""."""
    foreign = any("\udc80" <= character <= "\udcff" for character in text)
    return "; name the encoding of the file, such as encoding=cp1252" if foreign else ""
