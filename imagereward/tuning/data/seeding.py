"""Random numbers that depend on the seed, the purpose and the sample's number alone.

They depend neither on the process nor on random numbers drawn before. So a run in two processes draws the
same numbers as a run in one, and a resumed run the same as a run without interruption.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import torch


def random_generator(seed: int, *what: int | str) -> torch.Generator:
    """A generator on the CPU, seeded by 63 bits of SHA-256 of (seed, *what); `what` names the purpose."""
    digest = hashlib.sha256(repr((seed, *what)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def noise_for_samples(
    samples: Sequence[int], shape: Sequence[int], seed: int, what: str = "noise"
) -> torch.Tensor:
    """Standard normal noise [B, *shape] on the CPU; sample s is seeded by (seed, what, s)."""
    return torch.stack(
        [torch.randn(*shape, generator=random_generator(seed, what, each)) for each in samples]
    )


def rows_for_samples(samples: Sequence[int], rows: int, seed: int) -> list[int]:
    """The index 0..rows - 1 of each sample's row: sample s is place s % rows of epoch s // rows.

    Every epoch is a permutation of the rows, seeded by (seed, epoch).
    """
    places = (divmod(sample, rows) for sample in samples)
    return [_order(rows, seed, epoch)[place] for epoch, place in places]


@lru_cache(maxsize=4)
def _order(rows: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(rows, generator=random_generator(seed, "order", epoch)).tolist()
