"""Reads Parquet files, row group by row group."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagereward.errors import InputError
from imagereward.records.arrow import arrow
from imagereward.records.columns import check_repeated
from imagereward.records.record import Found, Record, Records, Wanted

# Rows in memory at once; a row that holds an image can have megabytes.
ROWS_AT_ONCE = 32
PAGE_BUFFER = 2**18  # bytes


@dataclass(frozen=True)
class Parquet:
    """The reader of a Parquet file, which skips row groups without a wanted row and unwanted columns."""

    path: Path

    def columns(self) -> dict[str, bool]:
        types = arrow().types
        with self._opened() as file:
            check_repeated(file.schema_arrow.names, self.path)
            return {
                field.name: types.is_list(field.type)
                or types.is_large_list(field.type)
                or types.is_fixed_size_list(field.type)
                for field in file.schema_arrow
            }

    def count(self) -> int:
        with self._opened() as file:
            return file.metadata.num_rows

    def records(self, start: int, wanted: Wanted, columns: Sequence[str] | None) -> Records:
        number = start
        with self._opened() as file:
            present = file.schema_arrow.names
            check_repeated(present, self.path)
            read = present if columns is None else [name for name in columns if name in present]
            for group in range(file.num_row_groups):
                end = number + file.metadata.row_group(group).num_rows
                if any(map(wanted, range(number, end))):
                    for row, record in zip(range(number, end), self._group(file, group, read)):
                        if wanted(row):
                            yield Found(row, record, self.path.parent)
                number = end
        return number

    def _opened(self):
        try:
            # Read page by page: a whole row group of images might not fit into memory.
            return arrow().parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=PAGE_BUFFER)
        except FileNotFoundError as error:
            raise InputError(f"{self.path} does not exist") from error
        except (arrow().ArrowException, OSError) as error:
            raise InputError(f"{self.path} cannot be read as Parquet: {error}") from error

    def _group(self, file, group: int, columns: Sequence[str]) -> Iterator[Record]:
        try:
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=list(columns)):
                yield from _rows(batch)
        except (arrow().ArrowException, OSError, ValueError) as error:
            raise InputError(f"{self.path}, row group {group}, cannot be read: {error}") from error


def _rows(batch) -> list[Record]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):  # text that is not UTF-8, a date beyond Python's: costs its own cell
        columns = [_cells(column) for column in batch.columns]
        return [dict(zip(batch.schema.names, cells)) for cells in zip(*columns)]


def _cells(column) -> list[Any]:
    pa = arrow()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return [_cell(scalar) for scalar in column]
    cells = column.cast(pa.large_binary()).to_pylist()
    return [cell if cell is None else cell.decode("utf-8", "surrogateescape") for cell in cells]


def _cell(scalar) -> Any:
    """A cell as Python has it, else as text; None for one that is neither."""
    pa = arrow()
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        try:
            return scalar.cast(pa.string()).as_py()
        except (pa.ArrowException, ValueError):
            return None
