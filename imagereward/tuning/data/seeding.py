"""Randomness as a function of what it is for, never of the process or of what ran before.

So one process and two see the same numbers, and a resumed run those of one that was not interrupted.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import torch


def random_generator(seed: int, *what: int | str) -> torch.Generator:
    """Random numbers for one purpose, the same wherever and whenever they are drawn."""
    digest = hashlib.sha256(repr((seed, *what)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def noise_for_samples(
    samples: Sequence[int], shape: Sequence[int], seed: int, what: str = "noise"
) -> torch.Tensor:
    """Standard normal noise [B, *shape], each sample's drawn by its number."""
    return torch.stack(
        [torch.randn(*shape, generator=random_generator(seed, what, each)) for each in samples]
    )


def rows_for_samples(samples: Sequence[int], rows: int, seed: int) -> list[int]:
    """Which row of the data each sample takes: every epoch a permutation of its own."""
    places = (divmod(sample, rows) for sample in samples)
    return [_order(rows, seed, epoch)[place] for epoch, place in places]


@lru_cache(maxsize=4)
def _order(rows: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(rows, generator=random_generator(seed, "order", epoch)).tolist()
