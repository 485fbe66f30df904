"""Output files: an existing one is kept unless the caller says overwrite, and none is ever half written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imagereward.errors import OutputError

# How the names of temporary files begin.
TEMPORARY = ".writing-"


def check_free(path: str | os.PathLike, overwrite: bool = False) -> Path:
    """`path` with `~` expanded. OutputError if it exists and `overwrite` is false, or is a directory."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise OutputError(f"{path} is a directory; expected the name of a file")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; pass --overwrite (overwrite=True) to replace it")
    return path


@contextmanager
def replacing(path: str | os.PathLike, folder: Path | None = None) -> Iterator[Path]:
    """A temporary file to write to; it takes the name `path` when the block ends without error.

    folder   where the temporary file is, on the file system of `path`; default: beside it

    Folders above `path` are made. The file is on disk before it takes the name. An error leaves whatever was
    at `path` as it was, and no temporary file. OutputError, which names `path`, for any OSError (no
    permission, a full disk).
    """
    path = Path(path).expanduser()
    temporary = (folder or path.parent) / f"{TEMPORARY}{path.name}-{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # the folder itself may be unusable, which is then the error
                temporary.unlink(missing_ok=True)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write `text` as UTF-8 by way of `replacing`; returns the path, with `~` expanded."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path).expanduser()
