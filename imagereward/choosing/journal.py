"""Journal: the file of choices, a JSON record a line, on disk before the next question is asked."""

import json
import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imagereward.errors import InputError, OutputError

MOST_BYTES = 64 * 2**20
MOST_IMAGES = 4  # of a choice
_BEGINS = b'{"prompt": "'  # every line that `append` writes


class Journal:
    """Appends choices to a JSON Lines file; goes on with one that exists.

    A line that a crash cut off at the end of the file is removed; a whole one without its line break gets it.
    Raises InputError for a file that is no journal of this class, which then stays as it is.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).expanduser().resolve()
        self.records: list[dict[str, Any]] = []
        self._starts: list[int] = []  # of each record's line in the file
        self._lock = threading.Lock()
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        if not self.path.is_file() or self.path.stat().st_size > MOST_BYTES:
            raise InputError(f"{self.path} is no file of choices of at most {MOST_BYTES} bytes")
        data = self.path.read_bytes()
        start = 0
        for number, line in enumerate(data.splitlines(keepends=True)):
            if start + len(line) == len(data) and _is_cut_off(line):
                self._cut(start)
                return
            if line.strip():
                self.records.append(self._record(line, number))
                self._starts.append(start)
            start += len(line)
        if self.records and not data.endswith(b"\n"):
            with open(self.path, "ab") as stream:
                stream.write(b"\n")

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
            images, ranking = record["images"], record["ranking"]
            valid = (
                isinstance(images, list) and isinstance(ranking, list) and isinstance(record["prompt"], str)
            )
            valid = valid and len(images) == len(ranking) and 2 <= len(images) <= MOST_IMAGES
            valid = valid and all(isinstance(name, str) for name in images)
            valid = valid and all(type(rank) is int and rank > 0 for rank in ranking)
        except (ValueError, TypeError, KeyError, RecursionError):
            valid = False
        if not valid:
            raise InputError(
                f"{self.path}, line {number + 1} is no choice of this page: expected {{prompt, images, "
                f"ranking}} of 2 to {MOST_IMAGES} images; choose another --choices"
            )
        return record

    def append(self, prompt: str, images: Sequence[Path], ranking: Sequence[int]) -> None:
        """Write a choice; it is on the disk when this returns. OutputError if it cannot be written.

        images   are written relative to the folder of the file
        ranking  the place of each, 1 for the best; ties share one
        """
        names = [os.path.relpath(image, self.path.parent) for image in images]
        record = {
            "prompt": prompt,
            "images": names,
            "ranking": list(ranking),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "ab") as stream:
                    start = stream.tell()
                    try:
                        stream.write(line)
                        stream.flush()
                        os.fsync(stream.fileno())
                    except OSError:  # a full disk: no half of a line stays
                        self._cut(start)
                        raise
            except OSError as error:
                raise OutputError(f"{self.path} cannot be written: {error}") from error
            self.records.append(record)
            self._starts.append(start)

    def undo(self) -> dict[str, Any] | None:
        """Remove the last choice from the file, and return it; None if there is none."""
        with self._lock:
            if not self.records:
                return None
            try:
                self._cut(self._starts[-1])
            except OSError as error:
                raise OutputError(f"{self.path} cannot be written: {error}") from error
            self._starts.pop()
            return self.records.pop()

    def _cut(self, size: int) -> None:
        with open(self.path, "rb+") as stream:
            stream.truncate(size)
            stream.flush()
            os.fsync(stream.fileno())


def _is_cut_off(line: bytes) -> bool:
    """Whether a file's last line is the beginning of a record as `append` writes it, and no whole one."""
    if line.endswith(b"\n") or not line.startswith(_BEGINS[: len(line)]):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False
