"""Ahead: bounds the memory of images that threads decode before they are used."""

import threading
from concurrent.futures import Future


class Ahead:
    """Counts the bytes of decoded images that wait to be used: at `most` and more, threads pause.

    Images are used in the order of their places 0, 1, … The next one is decoded in any case, so that no bound
    is too small. An image for each thread may exceed the bound.
    """

    def __init__(self, most: int):
        self.most = most
        self._held = self._next = 0
        self._ended = False
        self._changed = threading.Condition()

    def may_decode(self, place: int) -> bool:
        """Wait until the image at `place` may be decoded; False if no image is needed any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._held < self.most or place <= self._next or self._ended)
            return not self._ended

    def decoded(self, size: int) -> None:
        """Count an image of `size` bytes."""
        with self._changed:
            self._held += size
            self._changed.notify_all()

    def used(self, size: int) -> None:
        """Count the next image, of `size` bytes, as used."""
        with self._changed:
            self._held -= size
            self._next += 1
            self._changed.notify_all()

    def settled(self, future: Future) -> bool:
        """Wait until a decoder has ended or the bound is reached; whether it has ended."""
        future.add_done_callback(lambda _: self.decoded(0))
        with self._changed:
            self._changed.wait_for(lambda: future.done() or self._held >= self.most)
            return future.done()

    def end(self) -> None:
        """Let all threads go on, which then decode nothing."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
