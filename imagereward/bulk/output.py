"""The output of a bulk run: writes finished parts beside the output, and merges them into it at the end.

Files are written under temporary names and renamed once they are complete and on disk, so that a run may be
killed at any moment.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagereward.bulk.inputs.changes import ROWS_DIGEST
from imagereward.bulk.inputs.own_files import FINGERPRINT, FORMATS, NAME_IN_PARQUET, fingerprint_of
from imagereward.bulk.lock import held
from imagereward.bulk.scoring import faults
from imagereward.errors import InputError, OutputError, listing
from imagereward.records.arrow import arrow
from imagereward.writing import TEMPORARY, check_free, replacing

ROW_GROUP = 2**16  # rows of a row group of the output
INPUT_STATE = "input.json"  # in the directory of parts: `InputWatch.state`
MOST_REASONS = 20  # kinds of skipped files that a summary names


@dataclass(frozen=True)
class BulkSummary:
    """The result of `score_table`: the output's path and numbers of rows.

    rows        rows of the output
    failed      rows with an error and no scores
    truncated   rows whose prompt is longer than one of the models reads; None where it is not counted
    skipped     reason -> number of files (or members of shards) of the input that are in no row
    partly      rows with an error and the scores of some models; not among `failed`
    """

    out: Path
    rows: int
    failed: int
    truncated: int | None
    skipped: Mapping[str, int] = field(default_factory=dict)
    partly: int = 0

    @property
    def scored(self) -> int:
        """Rows with scores, of some models at least."""
        return self.rows - self.failed

    def __str__(self) -> str:
        failed = f"{self.failed or 'none'} failed"
        if self.failed or self.partly:
            failed += f" (the column error says why), {self.scored} scored"
        if self.partly:
            failed += f", {self.partly} of them not by all models"
        text = f"{self.out}: {self.rows} rows, {failed}"
        if self.truncated is not None:
            text += f", {self.truncated} with a prompt that was cut"
        if self.skipped:
            reasons = [f"{count} {reason}" for reason, count in self.skipped.items()]
            text += f"; {sum(self.skipped.values())} skipped: {listing(reasons, MOST_REASONS)}"
        return text


class Output:
    """The output file `out`, and the directory `<out>.parts` that holds its parts during a run.

    Raises InputError for an unknown format, OutputError for a file that exists unless `overwrite`.
    """

    def __init__(self, out: str | os.PathLike, overwrite: bool = False):
        self.out = Path(out).expanduser()
        self.directory = self.out.with_name(self.out.name + ".parts")
        self._lock = self.out.with_name(self.out.name + ".lock")
        self.overwrite = overwrite
        if self.out.suffix.lower() not in FORMATS:
            raise InputError(f"{self.out}: expected a name that ends in {', '.join(FORMATS)}")
        if self.out.exists() and not overwrite:
            self._remove_stale_parts()
        self._check_free()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the output's lock. OutputError if another process holds it or has just finished the output."""
        with held(self._lock, self.out):
            self._check_free()
            yield

    def begin(self, fingerprint: dict[str, Any]) -> set[int]:
        """Prepare the directory of parts; returns the indices of those that an earlier run has finished.

        Parts of a run with another fingerprint are an OutputError; with `overwrite` they are removed.
        """
        if self.directory.exists() and not self.directory.is_dir():
            raise OutputError(f"{self.directory} is no directory, and parts are kept there: move it")
        path = self.directory / FINGERPRINT
        fingerprint = json.loads(json.dumps(fingerprint))
        found = _read(path)
        if found is not None and found != fingerprint and not self.overwrite:
            raise OutputError(
                f"{self.directory} holds parts of another run, which must not be mixed with this one:"
                + differences(found, fingerprint)
                + "\nFinish that run, remove the directory, or pass --overwrite (overwrite=True)"
            )
        if found != fingerprint:
            self._remove(FINGERPRINT)  # first, because parts without a fingerprint are ignored
            self._remove("part-*.parquet")
            self._remove(INPUT_STATE)
            with self._writing(path) as temporary:
                temporary.write_text(json.dumps(fingerprint, indent=2) + "\n")
        self._remove(TEMPORARY + "*")  # left by a run that was killed
        return self.done()

    def done(self) -> set[int]:
        """Indices of the finished parts."""
        return {int(path.stem.split("-")[1]) for path in self.directory.glob("part-*.parquet")}

    def input_state(self) -> str | None:
        """`InputWatch.state` when the input's rows were last compared with the finished parts; or None."""
        found = _read(self.directory / INPUT_STATE)
        return None if found is None else found.get("state")

    def keep_input_state(self, state: str) -> None:
        """Write what `input_state` returns. Raises OutputError."""
        with self._writing(self.directory / INPUT_STATE) as temporary:
            temporary.write_text(json.dumps({"state": state}) + "\n")

    def discard(self, index: int) -> None:
        """Remove a finished part. Raises OutputError."""
        self._remove(self._part(index).name)

    def rows_digest(self, index: int) -> str:
        """The hash of the rows that a finished part was made of. OutputError for a damaged part."""
        found = self._schema(index).metadata or {}
        return found.get(ROWS_DIGEST, b"").decode()

    def write(self, index: int, table) -> None:
        """Write a part. OutputError if it cannot be; the parts before it stay."""
        with self._writing(self._part(index)) as temporary:
            arrow().parquet.write_table(table, temporary)

    def finish(self, rows: int, count: int, skipped: Mapping[str, int]) -> BulkSummary:
        """Merge the `count` parts into the output of `rows` rows, and remove them.

        Raises OutputError for parts that cannot be read or do not add up, and if writing fails.
        """
        fingerprint = (self.directory / FINGERPRINT).read_text()
        failed = partly = at = 0
        schema = self._schema(0).with_metadata({NAME_IN_PARQUET: fingerprint})
        counted = "truncated" in schema.names  # a masked table may have a column of that name, which is text
        truncated = 0 if counted and arrow().types.is_boolean(schema.field("truncated").type) else None
        with self._writing(self.out) as temporary:
            with closing(_writer(self.out, temporary, schema)) as writer:
                for table in self._tables(count):
                    if table["row"].to_pylist() != list(range(at, at + table.num_rows)):
                        raise OutputError(
                            f"the parts in {self.directory} do not follow at row {at}; remove it"
                        )
                    at += table.num_rows
                    wrong, without = faults(table)
                    failed += int((wrong & without).sum())
                    partly += int((wrong & ~without).sum())
                    if truncated is not None:
                        truncated += table["truncated"].to_pylist().count(True)
                    writer.write_table(table)
            if at != rows:
                raise OutputError(f"the parts in {self.directory} have {at} rows, not {rows}; remove it")
            if self.out.suffix.lower() != ".parquet":
                # When the table is whole, as a fingerprint that is younger than its table is not its own.
                with self._writing(self.out.with_name(f"{self.out.name}.{FINGERPRINT}")) as beside:
                    beside.write_text(fingerprint)
                os.utime(temporary)
        self._remove_parts()
        return BulkSummary(self.out, rows, failed, truncated, skipped, partly)

    def _remove_stale_parts(self) -> None:
        """Remove the parts of the existing output, which its run did not remove because it was killed.

        Parts of another run, and of a run that still holds the lock, stay.
        """
        if not self.directory.is_dir():
            return
        with suppress(OutputError), held(self._lock, self.out):
            found = _read(self.directory / FINGERPRINT)
            if fingerprint_of(self.out) is not None and found in (None, fingerprint_of(self.out)):
                self._remove_parts()

    def _remove_parts(self) -> None:
        for pattern in (FINGERPRINT, "part-*.parquet", INPUT_STATE, TEMPORARY + "*"):
            self._remove(pattern)
        with suppress(OSError):  # the directory holds other files as well
            self.directory.rmdir()

    def _tables(self, count: int) -> Iterator[Any]:
        """The rows of parts 0 to `count` - 1 as Arrow tables of about `ROW_GROUP` rows."""
        pa = arrow()
        waiting: list = []
        for index in range(count):
            with self._reading(index) as path:
                waiting.append(pa.parquet.ParquetFile(path).read())
            if index == count - 1 or sum(table.num_rows for table in waiting) >= ROW_GROUP:
                yield pa.concat_tables(waiting)
                waiting = []

    def _schema(self, index: int):
        with self._reading(index) as path:
            return arrow().parquet.read_schema(path)

    @contextmanager
    def _reading(self, index: int) -> Iterator[Path]:
        path = self._part(index)
        try:
            yield path
        except (OSError, arrow().ArrowException) as error:
            raise OutputError(
                f"the part {path} cannot be read: {error}. Remove it; the same call scores its rows again"
            ) from error

    def _part(self, index: int) -> Path:
        return self.directory / f"part-{index:08d}.parquet"

    @contextmanager
    def _writing(self, path: Path) -> Iterator[Path]:
        """`replacing(path)` with errors that say that finished parts are kept. Raises OutputError."""
        others: list[OutputError] = []  # raised by the block itself, for instance for a part it reads
        try:
            with replacing(path, self.directory) as temporary:
                try:
                    yield temporary
                except OutputError as error:
                    others.append(error)
                    raise
                except arrow().ArrowException as error:
                    raise OutputError(f"{path} cannot be written: {error}") from error
        except OutputError as error:
            if error in others:
                raise
            raise OutputError(
                f"{error}. What was finished is kept in {self.directory}; the same call goes on from there"
            ) from error

    def _check_free(self) -> None:
        check_free(self.out, self.overwrite)

    def _remove(self, pattern: str) -> None:
        for path in self.directory.glob(pattern):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"{path} cannot be removed: {error}") from error


def _read(fingerprint: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no file; {}, which equals no fingerprint, if unreadable."""
    try:
        found = json.loads(fingerprint.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """A line for every key in which the fingerprints `there` (stored) and `here` (this run) differ."""
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    return "".join(f"\n  {key}: {_short(there.get(key))} there, {_short(here.get(key))} here" for key in keys)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


class _JsonLinesWriter:
    """Writes Arrow tables as JSON Lines, with the methods of Arrow's own writers."""

    def __init__(self, path: Path):
        self.stream = open(path, "w", encoding="utf-8")  # noqa: SIM115

    def write_table(self, table) -> None:
        """Write the rows of an Arrow table."""
        self.stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())

    def close(self) -> None:
        """Flush and close the file."""
        self.stream.close()


def _writer(out: Path, temporary: Path, schema):
    """A writer of Arrow tables to the file `temporary`, in the format of the suffix of `out`."""
    if out.suffix.lower() == ".parquet":
        return arrow().parquet.ParquetWriter(temporary, schema)
    if out.suffix.lower() == ".csv":
        return arrow().csv.CSVWriter(str(temporary), schema)
    return _JsonLinesWriter(temporary)
