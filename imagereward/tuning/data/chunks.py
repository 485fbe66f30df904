"""Chunk: samples of an update that one process computes at once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """Consecutive samples of one update. `UpdatePlan` makes chunks.

    update   index of the update, from 0
    index    index of the chunk among the update's chunks, from 0, over all processes
    samples  the samples' numbers, counted from the start of the run. Random numbers are seeded by them
    share    the chunk's samples / the update's samples, 0..1; the shares of an update add up to 1
    """

    update: int
    index: int
    samples: tuple[int, ...]
    share: float
