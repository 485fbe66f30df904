"""Reads CSV and TSV files: cells between commas, semicolons or tabs, under a line of column names."""

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagereward.errors import InputError
from imagereward.records.columns import check_repeated, is_usual
from imagereward.records.record import Found, Record, Records, Wanted
from imagereward.records.text import MARK, MOST_LINE, read_lines

TAB_SUFFIXES = (".tsv", ".tab")
SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n?")  # a line that spreadsheets write above the column names


@dataclass(frozen=True)
class Delimited:
    """The reader of a .csv, .tsv or .tab file: a record per line, or several lines with a quoted line end.

    An empty cell is None. The delimiter of .tsv and .tab is the tab. In .csv it is the one of comma,
    semicolon and tab that splits the line of column names; if several do, the one that gives the most usual
    names; and otherwise the comma. A line that is no valid CSV, does not close a quote, or has more cells
    than columns becomes a record with an error; reading continues at the next line.
    """

    path: Path
    encoding: str | None = None

    def columns(self) -> dict[str, bool]:
        return dict.fromkeys(self._names(self._delimiter()), False)

    def count(self) -> int:
        delimiter = self._delimiter()
        return max(0, sum(1 for _ in self._rows(delimiter)) - 1)

    def records(self, start: int, wanted: Wanted, columns: Sequence[str] | None) -> Records:
        delimiter = self._delimiter()
        names, number = self._names(delimiter), start
        rows = self._rows(delimiter)
        next(rows, None)
        for line, cells in rows:
            if wanted(number):
                yield Found(number, _record(line, cells, names), self.path.parent)
            number += 1
        return number

    def _delimiter(self) -> str:
        if self.path.suffix.lower() in TAB_SUFFIXES:
            return "\t"
        first = next(read_lines(self.path, self.encoding), None)
        if given := SEPARATOR_LINE.fullmatch((first or "").removeprefix(MARK)):
            return given[1]
        splits = {delimiter: next(self._rows(delimiter), (0, []))[1] for delimiter in ",;\t"}
        several = [
            delimiter for delimiter, names in splits.items() if isinstance(names, list) and len(names) > 1
        ]
        return max(several, key=lambda delimiter: sum(map(is_usual, splits[delimiter])), default=",")

    def _names(self, delimiter: str) -> list[str]:
        _, names = next(self._rows(delimiter), (0, []))
        if isinstance(names, str):
            raise InputError(f"{self.path}, {names}; expected a line of column names")
        check_repeated(names, self.path)
        return names

    def _rows(self, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
        lines = read_lines(self.path, self.encoding)
        first = next(lines, None)
        feed = _Feed(lines, str(self.path))
        if first is not None and SEPARATOR_LINE.fullmatch(first.removeprefix(MARK)):
            feed.number = 1
        elif first is not None:
            feed.waiting.append(first)
        return read_cells(feed, delimiter)


def _record(line: int, cells: list[str] | str, names: list[str]) -> Record:
    if isinstance(cells, str):
        return cells
    if any(cells[len(names) :]):
        return (
            f"line {line} has {len(cells)} cells for {len(names)} columns: "
            "a cell that holds the delimiter needs quotes around it"
        )
    return {**dict.fromkeys(names), **{name: cell or None for name, cell in zip(names, cells)}}


MOST_REPEATED = 2 * MOST_LINE  # characters that may be read again after quotes that are not closed


class _Feed:
    """Feeds lines to csv.reader, and can return to the second line of the current record after an error."""

    def __init__(self, lines: Iterator[str | None], name: str = "the table"):
        self.lines, self.name = lines, name
        self.number = 0  # of the last line that was read, from 1
        self.waiting: deque[str | None] = deque()
        self.taken: list[str | None] = []
        self.size = 0
        self.fresh = self.repeated = 0  # characters that were read, and those that are read again

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        again = bool(self.waiting)
        line = self.waiting.popleft() if again else next(self.lines)
        self.fresh += 0 if again else len(line or "")
        self.number += 1
        if line is not None and not self.taken:
            line = line.removeprefix(MARK)  # inside concatenated files
        self.taken.append(line)
        self.size += len(line or "")
        if line is None or self.size > MOST_LINE:
            raise csv.Error(f"more than {MOST_LINE} characters")
        return line

    def begin(self) -> int:
        """Begin a record; returns the number of its first line, from 1."""
        self.taken.clear()
        self.size = 0
        return self.number + 1

    def go_back(self) -> None:
        """Return to the second line of the current record. InputError where that would take hours."""
        self.repeated += sum(len(line or "") for line in self.taken[1:])
        if self.repeated > MOST_REPEATED + 4 * self.fresh:
            raise InputError(
                f"{self.name}: up to line {self.number}, quotes are not closed again and again; is it CSV?"
            )
        self.waiting.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1


def read_cells(feed: _Feed, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """(number of the first line, cells or an error) of every record; blank lines are left out."""
    csv.field_size_limit(max(csv.field_size_limit(), MOST_LINE))  # global to the csv module; 128 KiB at first
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        line = feed.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            feed.go_back()
            reader = csv.reader(feed, delimiter=delimiter, strict=True)
            yield line, f"line {line} is not valid CSV ({error}): is a quote not closed?"
        else:
            if len(feed.taken) > 1 or (feed.taken[0] or "").strip(" \r\n"):
                yield line, cells
