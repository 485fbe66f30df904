"""A file for decoders to read from, within a time and a number of bytes."""

import os
import time
from typing import BinaryIO

# Bytes that a decoder may read, as a multiple of the file's size, and beside that.
READS, READS_AT_LEAST = 4, 2**20


class Deadline:
    """So many seconds of this thread's CPU time; once they are over, they stay over."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.started = time.thread_time()
        self.passed = False

    def check(self) -> None:
        """TimeoutError once the time is over."""
        self.passed = self.passed or time.thread_time() - self.started > self.seconds
        if self.passed:
            raise TimeoutError("the time is over")


class Bounded:
    """What Pillow reads a picture of `size` bytes from: `stream`, up to a deadline and a number of bytes."""

    def __init__(self, stream: BinaryIO, size: int, deadline: Deadline):
        self.stream = stream
        self.left = READS * size + READS_AT_LEAST
        self.deadline = deadline

    def read(self, size: int = -1) -> bytes:
        """As of any file. Raises TimeoutError and EOFError over the bounds, from then on for every call."""
        self.deadline.check()
        if self.left < 0:
            raise EOFError("more was read than the file holds")
        data = self.stream.read(size)
        self.left -= len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file."""
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        """As of any file."""
        return self.stream.tell()

    def close(self) -> None:
        """Nothing: the stream belongs to whoever opened it."""

    def fault(self) -> str | None:
        """Which bound was passed, if one was."""
        if self.deadline.passed:
            seconds = f"{self.deadline.seconds:.0f} s of CPU time"
            return f"takes more than {seconds} to decode: it is damaged, or made to be slow"
        if self.left < 0:
            return f"makes its decoder read more than {READS} times its size: it is made to be slow"
        return None
