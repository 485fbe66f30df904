"""Chunk: samples of an update that one process computes at once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """Some consecutive samples of one update. `UpdatePlan` makes them.

    update   index of the update, from 0
    index    the chunk's place among the update's chunks, over all processes
    samples  the numbers of its samples, counted through the whole run: what is random is drawn by them
    share    its part of the update's samples, 0..1; the shares of an update add up to 1
    """

    update: int
    index: int
    samples: tuple[int, ...]
    share: float
