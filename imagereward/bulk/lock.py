"""A lock file that lets one run at a time write an output, and that ends when its process ends."""

import contextlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from imagereward.errors import OutputError

# Seconds to wait for the lock: decoders of a run that was just killed hold it until they end.
PATIENCE = 2.0

HOLDER = "process"  # first word of the text in a lock file

_held: set[str] = set()  # lock files held by this process
_changing = threading.Lock()


@contextmanager
def held(path: Path, what: Path) -> Iterator[None]:
    """Hold the lock file `path` while the output `what` is written.

    The operating system releases the lock when the process ends: the file of a killed process is no lock.
    A set in memory excludes threads of one process, since some file systems lock for whole processes. Raises
    OutputError, naming the holder, if another process or thread holds the lock, and for a symbolic link or
    another kind of file at `path`.
    """
    with _held_in_process(path, what):
        lock = filelock.FileLock(path, timeout=PATIENCE, thread_local=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_ours(path)
            lock.acquire()
        except filelock.Timeout as error:
            holder = _read(path) or "another process"
            raise OutputError(
                f"{what} is being written by {holder}: wait for it, stop it, or choose another output"
            ) from error
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{path} cannot be written: {error}") from error
        ours = False
        try:
            ours = _write(path)
            yield
        finally:
            if ours and os.name != "nt":  # Windows cannot remove an open file
                # Removed while still locked: a process that has opened it meanwhile creates a new file.
                path.unlink(missing_ok=True)
            lock.release()


@contextmanager
def _held_in_process(path: Path, what: Path) -> Iterator[None]:
    key = os.path.realpath(path)
    with _changing:
        if key in _held:
            raise OutputError(
                f"{what} is being written by another thread of this process: wait for it, "
                "or choose another output"
            )
        _held.add(key)
    try:
        yield
    finally:
        with _changing:
            _held.discard(key)


def _check_ours(path: Path) -> None:
    """OutputError for a symbolic link and for a file that is not a lock: it would be overwritten."""
    if path.is_symlink():
        raise OutputError(f"{path} is a symbolic link, which a lock must not follow: remove it")
    if (found := _read(path)) and not re.match(rf"({HOLDER} )?\d+", found):
        raise OutputError(f"{path} holds something else than a lock: move it, or choose another output")


def _write(path: Path) -> bool:
    """Write this process's id and host into the lock file; False if filelock keeps its own text in it."""
    if (found := _read(path)) and not found.startswith(HOLDER):
        return False
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "w") as stream:
            stream.write(f"{HOLDER} {os.getpid()} on {socket.gethostname()}\n")
    return True


def _read(path: Path) -> str:
    """The first 200 characters of the lock file; empty if it cannot be read."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, errors="replace") as stream:
            return stream.read(200).strip()
    return ""
