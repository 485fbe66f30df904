"""`Bounded`: a file object that limits the time and the bytes that an image decoder may take."""

import os
import time
from typing import BinaryIO

# A decoder may read READS times the file's size plus READS_AT_LEAST bytes.
READS, READS_AT_LEAST = 4, 2**20


class Deadline:
    """A limit on this thread's CPU time, in seconds from its creation. `passed` stays True once exceeded."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.started = time.thread_time()
        self.passed = False

    def check(self) -> None:
        """Raise TimeoutError once the time is over."""
        self.passed = self.passed or time.thread_time() - self.started > self.seconds
        if self.passed:
            raise TimeoutError("the time is over")


class Bounded:
    """A file object over `stream`, which holds an image of `size` bytes, with a deadline and a byte limit."""

    def __init__(self, stream: BinaryIO, size: int, deadline: Deadline):
        self.stream = stream
        self.left = READS * size + READS_AT_LEAST
        self.deadline = deadline

    def read(self, size: int = -1) -> bytes:
        """Like a file's. Raises TimeoutError after the deadline and EOFError beyond the bytes, repeatedly."""
        self.deadline.check()
        if self.left < 0:
            raise EOFError("more was read than the file holds")
        data = self.stream.read(size)
        self.left -= len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Like a file's."""
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        """Like a file's."""
        return self.stream.tell()

    def close(self) -> None:
        """Does nothing: the caller closes the stream."""

    def fault(self) -> str | None:
        """The bound that was exceeded, as the end of a sentence; None if none was."""
        if self.deadline.passed:
            seconds = f"{self.deadline.seconds:.0f} s of CPU time"
            return f"takes more than {seconds} to decode: it is damaged, or made to be slow"
        if self.left < 0:
            return f"makes its decoder read more than {READS} times its size: it is made to be slow"
        return None
