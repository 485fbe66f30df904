"""Writes files atomically, and refuses to replace existing ones without `overwrite`."""

import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imagereward.errors import OutputError

# Prefix of the names of temporary files.
TEMPORARY = ".writing-"
# PREFIX NAME@HOST@PROCESS@RANDOM; a host's name has no @.
FORM = re.compile(re.escape(TEMPORARY) + r".*@(?P<host>[^@]+)@(?P<process>\d+)@[0-9a-f]{16}", re.DOTALL)
ABANDONED = 3600  # seconds without a write after which a file may be that of a killed process
MOST_OF_NAME = 32  # characters of a file's name in that of its temporary file


def check_free(path: str | os.PathLike, overwrite: bool = False) -> Path:
    """`path` with `~` expanded. OutputError if it exists and `overwrite` is false, or is a directory."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise OutputError(f"{path} is a directory; expected the name of a file")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; pass --overwrite (overwrite=True) to replace it")
    return path


def temporary_for(path: Path, folder: Path | None = None) -> Path:
    """A new name for a temporary file of `path`, which no other process on any machine has.

    folder   of the temporary file; default: the folder of `path`
    """
    name = f"{path.name[:MOST_OF_NAME]}@{socket.gethostname()}@{os.getpid()}@{secrets.token_hex(8)}"
    return (folder or path.parent) / f"{TEMPORARY}{name}"


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files that processes of this machine left in a folder when they were killed.

    Files of running processes, of other machines, of other names, and written within the last hour stay:
    containers may share a machine's name and a folder, and not see each other's processes. On Windows all
    stay, since a process cannot be asked for there without ending it.
    """
    if sys.platform == "win32":
        return
    for path in folder.glob(f"{TEMPORARY}*") if folder.is_dir() else ():
        form = FORM.fullmatch(path.name)
        mine = form is not None and form["host"] == socket.gethostname() and not _runs(int(form["process"]))
        if mine and path.is_file() and not path.is_symlink() and _is_old(path):
            path.unlink(missing_ok=True)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > ABANDONED
    except FileNotFoundError:  # another process has removed it
        return False


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def replacing(path: str | os.PathLike, folder: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` when the block ends without error.

    folder   of the temporary file, on the file system of `path`; default: the folder of `path`

    Creates missing folders. The file is flushed to disk before it is renamed. If the block raises, `path`
    stays as it was, and the temporary file is removed. Any OSError (no permission, a full disk) becomes an
    OutputError that names `path`.
    """
    path = Path(path).expanduser()
    temporary = temporary_for(path, folder)
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
