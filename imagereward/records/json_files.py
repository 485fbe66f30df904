"""Reads JSON Lines files line by line, and JSON lists as a whole."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from imagereward.errors import InputError
from imagereward.records.record import Found, Record, Records, Wanted
from imagereward.records.text import MARK, MOST_LINE, read_lines, read_text

FIRST_LINES = 100  # lines that are parsed to find the columns of a JSON Lines file
MOST_LIST = 2**29  # most bytes of a JSON list, which is held in memory


@dataclass(frozen=True)
class JsonLines:
    """The reader of a JSON Lines file: an object per line, or a string, which becomes the column "prompt".

    Blank lines are skipped. A line that is not JSON becomes a record with an error.
    """

    path: Path
    encoding: str | None = None

    def columns(self) -> dict[str, bool]:
        return columns_of(_parsed(line) for line in islice(self._lines(), FIRST_LINES))

    def count(self) -> int:
        return sum(1 for _ in self._lines())

    def records(self, start: int, wanted: Wanted, columns: Sequence[str] | None) -> Records:
        number = start
        for line in self._lines():
            if wanted(number):
                yield Found(number, _parsed(line), self.path.parent)
            number += 1
        return number

    def _lines(self) -> Iterator[str | None]:
        for line in read_lines(self.path, self.encoding):
            # Concatenated files have byte order marks inside.
            line = line and line.removeprefix(MARK)
            if line is None or line.strip():
                yield line


@dataclass(frozen=True)
class JsonList:
    """The reader of a JSON list of objects, or of strings, which become the column "prompt"."""

    path: Path
    encoding: str | None = None

    def columns(self) -> dict[str, bool]:
        return columns_of(self._records)

    def count(self) -> int:
        return len(self._records)

    def records(self, start: int, wanted: Wanted, columns: Sequence[str] | None) -> Records:
        for number, record in enumerate(self._records, start):
            if wanted(number):
                yield Found(number, record, self.path.parent)
        return start + len(self._records)

    def __reduce__(self):  # pickled without the records: other processes read the file themselves
        return type(self), (self.path, self.encoding)

    @cached_property
    def _records(self) -> list[Record]:
        text = read_text(self.path, self.encoding, MOST_LIST)
        try:
            values = json.loads(text, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            lines = "; name a file with one object on each line .jsonl" if "Extra data" in str(error) else ""
            raise InputError(f"{self.path} cannot be read as JSON: {error}{lines}") from error
        if not isinstance(values, list):
            raise InputError(f"{self.path} holds a {type(values).__name__}; expected a list of records")
        return [_record(value) for value in values]


def columns_of(records) -> dict[str, bool]:
    """{column: whether any of its cells is a list}, in order of first use."""
    names: dict[str, bool] = {}
    for record in records:
        if isinstance(record, dict):
            for name, value in record.items():
                names[name] = names.get(name, False) or isinstance(value, list)
    return names


def _parsed(line: str | None) -> Record:
    if line is None:
        return f"the line has more than {MOST_LINE} characters"
    try:
        return _record(json.loads(line, object_pairs_hook=_unique))
    except (ValueError, RecursionError) as error:
        return f"the line is not JSON: {error}"


def _record(value: Any) -> Record:
    if isinstance(value, str):
        return {"prompt": value}
    return value if isinstance(value, dict) else f"the record is a {type(value).__name__}, not an object"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return found
