"""Prints rows to stdout as a table, JSON or CSV, and turns failures of stdout into errors."""

import contextlib
import csv
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from imagereward.cli.options import Format


def print_rows(rows: list[dict[str, Any]], format: Format) -> None:
    """Print rows, dicts with the same keys, to stdout in the given format; NaN is null in JSON."""
    if format == Format.json:
        print(as_json(rows))
    elif format == Format.csv:
        writer = csv.DictWriter(sys.stdout, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    else:
        from imagereward.table import table

        print(table(rows))


def as_json(value: Any) -> str:
    """JSON text with null for NaN, and with JSON's own escapes if stdout's encoding lacks a character."""
    value = without_nan(value)
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=2)
    return text


def is_nan(value: Any) -> bool:
    """Whether a value is a float without a number."""
    return isinstance(value, float) and math.isnan(value)


def without_nan(value: Any) -> Any:
    """The value with None for every NaN in its lists and dicts, which JSON lacks."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return None if is_nan(value) else value


@contextlib.contextmanager
def guarded_stdout() -> Iterator[None]:
    """Make failures of stdout in the block (a full disk, a closed pipe) OutputErrors, even at the last flush.

    Characters that the terminal's encoding lacks are written as escapes.
    """
    stream = sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    guarded: Any = _Guarded(stream)
    try:
        with contextlib.redirect_stdout(guarded):
            try:
                yield
            finally:
                guarded.flush()
    finally:
        if guarded.failed:
            _discard(stream)


class _Guarded:
    """A text stream whose OSErrors become OutputErrors."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.failed = False

    def write(self, text: str) -> int:
        """Like the stream's."""
        return self._call(self.stream.write, text)

    def flush(self) -> None:
        """Like the stream's; does nothing after a failure."""
        if not self.failed:
            self._call(self.stream.flush)

    def _call(self, method, *arguments):
        from imagereward.errors import OutputError

        try:
            return method(*arguments)
        except OSError as error:
            self.failed = True
            reason = "its reader has closed it" if isinstance(error, BrokenPipeError) else error.strerror
            raise OutputError(f"standard output cannot be written: {reason}") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _discard(stream: TextIO) -> None:
    """Send the rest of the stream's buffer to /dev/null; the interpreter would report it when it exits."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
