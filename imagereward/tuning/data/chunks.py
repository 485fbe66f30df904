"""What an update consists of: samples numbered through the whole run, in chunks dealt to processes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """Some samples of one update: their numbers, their place among its chunks, their share of its samples."""

    update: int
    index: int
    samples: tuple[int, ...]
    share: float


def chunks(update: int, batch_size: int, micro_batch: int) -> list[Chunk]:
    """An update's samples in chunks of `micro_batch`; the last may be short. Process r of n takes [r::n]."""
    first, end = update * batch_size, (update + 1) * batch_size
    groups = [range(at, min(at + micro_batch, end)) for at in range(first, end, micro_batch)]
    return [Chunk(update, i, tuple(group), len(group) / batch_size) for i, group in enumerate(groups)]
