"""Tables as inputs: JSON Lines, CSV, Parquet, and rankings in ImageRewardDB's layout."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from imagereward.bulk.arrow import arrow
from imagereward.bulk.sources import Record, Wanted
from imagereward.errors import InputError
from imagereward.rankings import RankedPrompt, read_rankings

# Lines in which the columns of JSON Lines are looked for.
FIRST_LINES = 100
# Parquet rows in memory at once: with images inside they can be megabytes each.
ROWS_AT_ONCE = 32
PAGE_BUFFER = 2**18


@dataclass(frozen=True)
class JsonLines:
    """One JSON object a line; blank lines are no rows, a line that is no object is a row with an error."""

    name: str
    paths: tuple[Path, ...]
    prompts_beside_images = False

    def columns(self) -> list[str]:
        names: dict[str, None] = {}
        for line in islice(self._lines(), FIRST_LINES):
            if isinstance(record := _parsed(line), dict):
                names.update(dict.fromkeys(record))
        if not names:
            raise InputError(f"{self.name} has no JSON object in its first {FIRST_LINES} lines")
        return list(names)

    def count(self) -> int:
        return sum(1 for _ in self._lines())

    def files(self) -> tuple[Path, ...]:
        return self.paths

    def records(self, wanted: Wanted, columns: Sequence[str]) -> Iterator[tuple[int, Record]]:
        for number, line in enumerate(self._lines()):
            if wanted(number):
                yield number, _parsed(line)

    def _lines(self) -> Iterator[bytes]:
        for path in self.paths:
            with open(path, "rb") as stream:
                yield from (line for line in stream if not line.isspace())


def _parsed(line: bytes) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"the line is not JSON: {error}"
    return record if isinstance(record, dict) else f"the line holds a {type(record).__name__}, not an object"


@dataclass(frozen=True)
class Csv:
    """Comma-separated values under a line of names; cells that a short line lacks are None."""

    name: str
    paths: tuple[Path, ...]
    prompts_beside_images = False

    def columns(self) -> list[str]:
        for path in self.paths:
            with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
                if names := csv.DictReader(stream).fieldnames:
                    return list(names)
        raise InputError(f"{self.name} is empty; expected a line of column names")

    def count(self) -> int:
        return sum(1 for _ in self.records(lambda _: True, ()))

    def files(self) -> tuple[Path, ...]:
        return self.paths

    def records(self, wanted: Wanted, columns: Sequence[str]) -> Iterator[tuple[int, Record]]:
        number = 0
        for path in self.paths:
            # Bytes that are no UTF-8 then fail where they are used: in a prompt they cost its row.
            with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
                reader = csv.DictReader(stream)
                try:
                    for record in reader:
                        if wanted(number):
                            yield number, record
                        number += 1
                except csv.Error as error:
                    raise InputError(f"{path}, line {reader.line_num}: {error}") from error


@dataclass(frozen=True)
class Parquet:
    """Parquet, with paths or encoded images; row groups without a wanted row are not read."""

    name: str
    paths: tuple[Path, ...]
    prompts_beside_images = False

    def columns(self) -> list[str]:
        with self._opened(self.paths[0]) as file:
            return list(file.schema_arrow.names)

    def count(self) -> int:
        total = 0
        for path in self.paths:
            with self._opened(path) as file:
                total += file.metadata.num_rows
        return total

    def files(self) -> tuple[Path, ...]:
        return self.paths

    def records(self, wanted: Wanted, columns: Sequence[str]) -> Iterator[tuple[int, Record]]:
        number = 0
        for path in self.paths:
            with self._opened(path) as file:
                if missing := set(columns) - set(file.schema_arrow.names):
                    raise InputError(
                        f"{path} has no column {', '.join(sorted(missing))}, unlike the first file"
                    )
                for group in range(file.num_row_groups):
                    end = number + file.metadata.row_group(group).num_rows
                    if any(map(wanted, range(number, end))):
                        rows = self._group(file, path, group, columns)
                        yield from (pair for pair in zip(range(number, end), rows) if wanted(pair[0]))
                    number = end

    def _opened(self, path: Path):
        try:
            # Page by page: a row group of images, read at once, would not fit.
            return arrow().parquet.ParquetFile(path, pre_buffer=False, buffer_size=PAGE_BUFFER)
        except (arrow().ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read as Parquet: {error}") from error

    def _group(self, file, path: Path, group: int, columns: Sequence[str]) -> Iterator[Record]:
        try:
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=list(columns)):
                yield from batch.to_pylist()
        except (arrow().ArrowException, OSError) as error:
            raise InputError(f"{path}, row group {group}, cannot be read: {error}") from error


@dataclass(frozen=True)
class Rankings:
    """ImageRewardDB's JSON: every generation of every prompt is a row, `rank` what people gave it."""

    name: str
    paths: tuple[Path, ...]
    prompts_beside_images = False

    def columns(self) -> list[str]:
        return ["id", "prompt", "image", "rank"]

    def count(self) -> int:
        return sum(len(ranked.generations) for ranked in self._ranked)

    def files(self) -> tuple[Path, ...]:
        return self.paths

    def records(self, wanted: Wanted, columns: Sequence[str]) -> Iterator[tuple[int, Record]]:
        number = 0
        for ranked in self._ranked:
            for path, rank in zip(ranked.generations, ranked.ranking):
                if wanted(number):
                    yield number, {"id": ranked.id, "prompt": ranked.prompt, "image": str(path), "rank": rank}
                number += 1

    @cached_property
    def _ranked(self) -> list[RankedPrompt]:
        return [ranked for path in self.paths for ranked in read_rankings(path, "")]
