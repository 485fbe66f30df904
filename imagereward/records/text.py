"""Reads text files as lines of bounded length, with their encodings and byte order marks."""

import codecs
import io
from collections.abc import Iterator
from pathlib import Path

from imagereward.errors import InputError

MOST_LINE = 2**24  # most characters of a line, or of a CSV record of several lines
MARK = "\ufeff"  # the byte order mark, decoded
# In this order, because UTF-32's little-endian mark begins with UTF-16's.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def check_encoding(encoding: str | None) -> None:
    """InputError if Python has no text encoding of this name."""
    try:
        "".encode(encoding or "utf-8")
    except (LookupError, UnicodeError) as error:
        raise InputError(
            f"encoding={encoding!r} is no text encoding ({error}); expected utf-8, utf-16, cp1252, gb18030 …"
        ) from error


def read_lines(path: Path, encoding: str | None) -> Iterator[str | None]:
    r"""The lines of a file with their line ends; None for a line of more than `MOST_LINE` characters.

    encoding   default: by the byte order mark, or else UTF-8

    Lines end at "\n" only (and so at "\r\n"): U+2028, U+0085, form feeds and a lone "\r" stay in the line.
    Bytes that the encoding cannot decode become lone surrogates, which `prompt_error` reports for a prompt.
    Raises InputError for a file that cannot be read and an encoding that contradicts the byte order mark.
    """
    try:
        with _open(path, encoding) as stream:
            while line := stream.readline(MOST_LINE):
                if len(line) < MOST_LINE or line.endswith("\n"):
                    yield line
                    continue
                while (rest := stream.readline(MOST_LINE)) and not rest.endswith("\n"):
                    pass
                yield None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be decoded: {error}; pass the right encoding") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def read_text(path: Path, encoding: str | None, most: int) -> str:
    """The whole file as text, decoded as by `read_lines`; InputError for more than `most` bytes."""
    try:
        with _open(path, encoding) as stream:
            size = path.stat().st_size
            if size > most:
                raise InputError(f"{path} has {size} bytes; at most {most} are read as one piece")
            return stream.read()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be decoded: {error}; pass the right encoding") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _open(path: Path, encoding: str | None) -> io.TextIOWrapper:
    stream = open(path, "rb")  # noqa: SIM115
    try:
        chosen = _encoding(stream.peek(4)[:4], encoding, path)
    except BaseException:
        stream.close()
        raise
    return io.TextIOWrapper(stream, chosen, "surrogateescape", newline="\n")


def _encoding(start: bytes, given: str | None, path: Path) -> str:
    marked = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
    if given is None:
        if marked is None and len(start) > 1 and (start[0] == 0) != (start[1] == 0):
            order = "utf-16-be" if start[0] == 0 else "utf-16-le"
            raise InputError(f"{path} looks like UTF-16 without a byte order mark; pass encoding={order!r}")
        return marked or "utf-8"
    name = codecs.lookup(given).name
    if marked is None:
        return name
    if not name.startswith(marked.removesuffix("-sig")):
        encoding = marked.removesuffix("-sig").upper()
        raise InputError(f"{path} begins with the byte order mark of {encoding}, but encoding={given!r}")
    return marked


def _unreadable(path: Path, error: OSError) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} does not exist")
    return InputError(f"{path} cannot be read: {error}")
