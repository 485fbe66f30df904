"""Journal: the file of choices, a JSON record a line, on disk before the next question is asked."""

import json
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imagereward.bulk.lock import held
from imagereward.errors import InputError, OutputError

MOST_BYTES = 64 * 2**20
MOST_IMAGES = 4  # of a choice
_BEGINS = b'{"prompt": "'  # every line that `append` writes


class Journal:
    """Appends choices to a JSON Lines file; goes on with one that exists.

    Until `close`, or the end of a `with`, the file is this object's alone: a file PATH.lock beside it is
    locked, which excludes other journals, and what any other program wrote is never cut off.

    A line that a crash cut off at the end of the file is removed; a whole one without its line break gets it.
    Raises InputError for a file that is no journal of this class, which then stays as it is, and OutputError,
    naming the holder, while another journal has the file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).expanduser().resolve()
        self.records: list[dict[str, Any]] = []
        self._lines: list[bytes] = []  # of each record in the file, with blank ones after it
        self._before = 0  # bytes of the file before the first record
        self._lock = threading.Lock()
        with ExitStack() as stack:
            stack.enter_context(held(self.path.with_name(f"{self.path.name}.lock"), self.path))
            if self.path.exists():
                self._read()
            self._held = stack.pop_all()

    def close(self) -> None:
        """Let others have the file."""
        self._held.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        if not self.path.is_file() or self.path.stat().st_size > MOST_BYTES:
            raise InputError(f"{self.path} is no file of choices of at most {MOST_BYTES} bytes")
        data = self.path.read_bytes()
        start = 0
        for number, line in enumerate(data.splitlines(keepends=True)):
            if start + len(line) == len(data) and _is_cut_off(line):
                self._cut(start, line)
                return
            start += len(line)
            if line.strip():
                self.records.append(self._record(line, number))
                self._lines.append(line)
            elif self._lines:
                self._lines[-1] += line
            else:
                self._before = start
        if self.records and not data.endswith(b"\n"):
            with open(self.path, "ab") as stream:
                stream.write(b"\n")
            self._lines[-1] += b"\n"

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
        """Write a choice; it is on the disk when this returns.

        images   are written relative to the folder of the file
        ranking  the place of each, 1 for the best; ties share one

        Raises OutputError if it cannot be written, or if another program changed the file.
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
                with open(self.path, "ab", buffering=0) as stream:  # a buffer would be written again by close
                    start = stream.tell()
                    if start != self._size(self._lines):
                        raise self._changed()
                    try:
                        left = memoryview(line)
                        while left:
                            left = left[stream.write(left) :]
                        os.fsync(stream.fileno())
                    except OSError:  # a full disk: no half of a line stays
                        self._cut(start, line)
                        raise
            except OSError as error:
                raise self._unwritten(error) from error
            self.records.append(record)
            self._lines.append(line)

    def undo(self) -> dict[str, Any] | None:
        """Remove the last choice from the file, and return it; None if there is none.

        Raises OutputError if the file cannot be written, or if another program changed it: it then stays.
        """
        with self._lock:
            if not self.records:
                return None
            try:
                if self.path.stat().st_size != self._size(self._lines):
                    raise self._changed()
                self._cut(self._size(self._lines[:-1]), self._lines[-1])
            except OSError as error:
                raise self._unwritten(error) from error
            self._lines.pop()
            return self.records.pop()

    def _size(self, lines: Sequence[bytes]) -> int:
        """Bytes of the file with these lines."""
        return self._before + sum(map(len, lines))

    def _cut(self, size: int, written: bytes) -> None:
        """Cut the file to a size; OutputError if what is behind it is no beginning of what was written."""
        with open(self.path, "rb+") as stream:
            stream.seek(size)
            if not written.startswith(stream.read(len(written) + 1)):
                raise self._changed()
            stream.truncate(size)
            stream.flush()
            os.fsync(stream.fileno())

    def _changed(self) -> OutputError:
        return OutputError(
            f"{self.path} was changed by another program while this page was open, and is left as it is: end "
            "`imagereward choose` by Ctrl-C and start it again, which goes on with what is in the file"
        )

    def _unwritten(self, error: OSError) -> OutputError:
        if isinstance(error, OutputError):
            return error
        return OutputError(f"{self.path} cannot be written: {error}")


def _is_cut_off(line: bytes) -> bool:
    """Whether a file's last line is the beginning of a record as `append` writes it, and no whole one."""
    if line.endswith(b"\n") or not line.startswith(_BEGINS[: len(line)]):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False
