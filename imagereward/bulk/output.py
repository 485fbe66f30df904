"""What a run writes: parts as they are finished, beside the output, and the output made of them.

A file appears under its name only when it is whole and on disk, so a run may be killed at any moment.
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
from imagereward.errors import InputError, OutputError, listing
from imagereward.records.arrow import arrow
from imagereward.writing import TEMPORARY, check_free, replacing

ROW_GROUP = 2**16
INPUT_STATE = "input.json"
MOST_REASONS = 20


@dataclass(frozen=True)
class Summary:
    """How a table came out: rows in all, those with an error, those whose prompt was cut.

    skipped   what the input holds beside its rows: a reason -> how many files or members
    """

    out: Path
    rows: int
    failed: int
    truncated: int
    skipped: Mapping[str, int] = field(default_factory=dict)

    @property
    def scored(self) -> int:
        """Rows with scores."""
        return self.rows - self.failed

    def __str__(self) -> str:
        failed = "none failed"
        if self.failed:
            failed = f"{self.failed} failed (the column error says why), {self.scored} scored"
        text = f"{self.out}: {self.rows} rows, {failed}, {self.truncated} with a prompt that was cut"
        if self.skipped:
            reasons = [f"{count} {reason}" for reason, count in self.skipped.items()]
            text += f"; {sum(self.skipped.values())} skipped: {listing(reasons, MOST_REASONS)}"
        return text


class Output:
    """The file `out` and the directory `<out>.parts` that it grows in."""

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
        """No other process writes this output meanwhile. OutputError if one does, or has just finished it."""
        with held(self._lock, self.out):
            self._check_free()
            yield

    def begin(self, fingerprint: dict[str, Any]) -> set[int]:
        """The parts that an earlier run has finished. OutputError if its fingerprint was another.

        With `overwrite`, another run's parts are removed instead.
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
            self._remove(FINGERPRINT)  # first: parts without it are nobody's
            self._remove("part-*.parquet")
            self._remove(INPUT_STATE)
            with self._writing(path) as temporary:
                temporary.write_text(json.dumps(fingerprint, indent=2) + "\n")
        self._remove(TEMPORARY + "*")  # of a run that was killed
        return self.done()

    def done(self) -> set[int]:
        """Indices of the finished parts."""
        return {int(path.stem.split("-")[1]) for path in self.directory.glob("part-*.parquet")}

    def input_state(self) -> str | None:
        """The state of the input's files when its rows were last compared with the parts'."""
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

    def finish(self, rows: int, count: int, skipped: Mapping[str, int]) -> Summary:
        """Make the output, of `rows` rows, from its `count` parts, and remove these. Raises OutputError."""
        fingerprint = (self.directory / FINGERPRINT).read_text()
        if self.out.suffix.lower() != ".parquet":
            with self._writing(self.out.with_name(f"{self.out.name}.{FINGERPRINT}")) as temporary:
                temporary.write_text(fingerprint)
        failed = truncated = at = 0
        schema = self._schema(0).with_metadata({NAME_IN_PARQUET: fingerprint})
        with self._writing(self.out) as temporary, closing(_writer(self.out, temporary, schema)) as writer:
            for table in self._tables(count):
                if table["row"].to_pylist() != list(range(at, at + table.num_rows)):
                    raise OutputError(f"the parts in {self.directory} do not follow at row {at}; remove it")
                at += table.num_rows
                failed += table.num_rows - table["error"].null_count
                truncated += table["truncated"].to_pylist().count(True)
                writer.write_table(table)
            if at != rows:
                raise OutputError(f"the parts in {self.directory} have {at} rows, not {rows}; remove it")
        self._remove_parts()
        return Summary(self.out, rows, failed, truncated, skipped)

    def _remove_stale_parts(self) -> None:
        """Remove the parts of an output that is there: its run was killed before it could.

        Parts of another run stay, and those that a running process needs.
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
        with suppress(OSError):  # a directory that holds something else as well
            self.directory.rmdir()

    def _tables(self, count: int) -> Iterator[Any]:
        """The parts' rows, about a row group at a time."""
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
        """A name to write to, which becomes `path` once all of it is on disk. Raises OutputError."""
        others: list[OutputError] = []  # of what is read meanwhile
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
    """None if there is none; empty, and so unlike any other, if it cannot be read."""
    try:
        found = json.loads(fingerprint.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """A line for every key in which two fingerprints differ."""
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    return "".join(f"\n  {key}: {_short(there.get(key))} there, {_short(here.get(key))} here" for key in keys)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


class _JsonLinesWriter:
    """Like Arrow's writers of other formats."""

    def __init__(self, path: Path):
        self.stream = open(path, "w", encoding="utf-8")  # noqa: SIM115

    def write_table(self, table) -> None:
        """Write the rows of an Arrow table."""
        self.stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())

    def close(self) -> None:
        """Write what is still in memory."""
        self.stream.close()


def _writer(out: Path, temporary: Path, schema):
    """What writes tables to `temporary` in the format that `out` asks for."""
    if out.suffix.lower() == ".parquet":
        return arrow().parquet.ParquetWriter(temporary, schema)
    if out.suffix.lower() == ".csv":
        return arrow().csv.CSVWriter(str(temporary), schema)
    return _JsonLinesWriter(temporary)
