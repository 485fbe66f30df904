"""One run at a time writes an output: a lock that ends with its process, however that ends."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagereward.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


@contextmanager
def held(path: Path, what: Path) -> Iterator[None]:
    """Hold the lock file `path` while `what` is written; OutputError, naming the process, if another does.

    The kernel keeps the lock and drops it when the process dies: a file that a killed process left is no
    lock. It is a record lock, which forked children do not share: decoders that outlive a killed run for a
    moment must not stop the next one. Without fcntl nothing is held.
    """
    if fcntl is None:
        yield
        return
    try:
        descriptor = _taken(path, what)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path} cannot be written: {error}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # still held: whoever opened it meanwhile looks for a new one
        os.close(descriptor)


def _taken(path: Path, what: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise OutputError(
                f"{what} is being written by {holder}: wait for it, stop it, or choose another output"
            ) from error
        if os.fstat(descriptor).st_nlink:
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return descriptor
        os.close(descriptor)  # removed by its last holder between opening and locking
