"""What a run writes: parts as they are finished, beside the output, and the output made of them.

A file appears under its name only when it is whole and on disk, so a run may be killed at any moment.
"""

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagereward.arrow import arrow
from imagereward.bulk.lock import held
from imagereward.errors import InputError, OutputError

FORMATS = (".parquet", ".jsonl", ".csv")
FINGERPRINT = "fingerprint.json"
TEMPORARY = ".writing-"
ROW_GROUP = 2**16
NAME_IN_PARQUET = b"imagereward"


@dataclass(frozen=True)
class Summary:
    """How a table came out: rows in all, those with an error, those whose prompt was cut."""

    out: Path
    rows: int
    failed: int
    truncated: int

    def __str__(self) -> str:
        failed = f"{self.failed} failed (the column error says why)" if self.failed else "none failed"
        return f"{self.out}: {self.rows} rows, {failed}, {self.truncated} with a prompt that was cut"


class Output:
    """The file `out` and the directory `<out>.parts` that it grows in."""

    def __init__(self, out: str | os.PathLike, overwrite: bool = False):
        self.out = Path(out).expanduser()
        self.directory = self.out.with_name(self.out.name + ".parts")
        self.overwrite = overwrite
        if self.out.suffix.lower() not in FORMATS:
            raise InputError(f"{self.out}: expected a name that ends in {', '.join(FORMATS)}")
        self._check_free()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other process writes this output meanwhile. OutputError if one does, or has just finished it."""
        with held(self.out.with_name(self.out.name + ".lock"), self.out):
            self._check_free()
            yield

    def begin(self, fingerprint: dict[str, Any]) -> set[int]:
        """The parts that an earlier run has finished. OutputError if its fingerprint was another.

        With `overwrite`, another run's parts are removed instead.
        """
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
            path.unlink(missing_ok=True)  # first: parts without it are nobody's
            self._remove("part-*.parquet")
            with self._writing(path) as temporary:
                temporary.write_text(json.dumps(fingerprint, indent=2) + "\n")
        self._remove(TEMPORARY + "*")  # of a run that was killed
        return self.done()

    def done(self) -> set[int]:
        """Indices of the finished parts."""
        return {int(path.stem.split("-")[1]) for path in self.directory.glob("part-*.parquet")}

    def write(self, index: int, table) -> None:
        """Write a part. OutputError if it cannot be; the parts before it stay."""
        with self._writing(self._part(index)) as temporary:
            arrow().parquet.write_table(table, temporary)

    def finish(self, rows: int, count: int) -> Summary:
        """Make the output, of `rows` rows, from its `count` parts, and remove these. Raises OutputError."""
        fingerprint = (self.directory / FINGERPRINT).read_text()
        if self.out.suffix.lower() != ".parquet":
            with self._writing(self.out.with_name(f"{self.out.name}.{FINGERPRINT}")) as temporary:
                temporary.write_text(fingerprint)
        failed = truncated = at = 0
        schema = arrow().parquet.read_schema(self._part(0)).with_metadata({NAME_IN_PARQUET: fingerprint})
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
        self._remove("part-*.parquet")
        self._remove(FINGERPRINT)
        with suppress(OSError):  # a directory that holds something else as well
            self.directory.rmdir()
        return Summary(self.out, rows, failed, truncated)

    def _tables(self, count: int) -> Iterator[Any]:
        """The parts' rows, about a row group at a time."""
        pa = arrow()
        waiting: list = []
        for index in range(count):
            waiting.append(pa.parquet.ParquetFile(self._part(index)).read())
            if index == count - 1 or sum(table.num_rows for table in waiting) >= ROW_GROUP:
                yield pa.concat_tables(waiting)
                waiting = []

    def _part(self, index: int) -> Path:
        return self.directory / f"part-{index:08d}.parquet"

    @contextmanager
    def _writing(self, path: Path) -> Iterator[Path]:
        """A name to write to, which becomes `path` once all of it is on disk."""
        temporary = self.directory / f"{TEMPORARY}{path.name}-{os.getpid()}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written: {error}. What was finished is kept in {self.directory}; "
                "the same call goes on from there"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _check_free(self) -> None:
        if self.out.exists() and not self.overwrite:
            raise OutputError(f"{self.out} exists; pass --overwrite (overwrite=True) to replace it")

    def _remove(self, pattern: str) -> None:
        for path in self.directory.glob(pattern):
            path.unlink(missing_ok=True)


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
