"""Writes files atomically, and refuses to replace existing ones without `overwrite`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imagereward.errors import OutputError

# Prefix of the names of temporary files.
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
    """Yield a temporary path to write to, and rename it to `path` when the block ends without error.

    folder   of the temporary file, on the file system of `path`; default: the folder of `path`

    Creates missing folders. The file is flushed to disk before it is renamed. If the block raises, `path`
    stays as it was, and the temporary file is removed. Any OSError (no permission, a full disk) becomes an
    OutputError that names `path`.
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
            with suppress(OSError):  # an unusable folder has already raised the error above
                temporary.unlink(missing_ok=True)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write `text` as UTF-8, atomically (`replacing`); returns the path with `~` expanded."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path).expanduser()
