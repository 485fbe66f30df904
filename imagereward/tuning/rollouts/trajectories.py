"""Trajectories as frozen tensors: sampled, kept where they are trained, and dealt out as minibatches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed

from imagereward.errors import InputError
from imagereward.tuning.data.chunks import Chunk
from imagereward.tuning.data.seeding import noise_for_samples, rows_for_samples
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.sampling.base import Dynamics, round_to_storage


def group_numbers(samples: Sequence[int], size: int) -> list[int]:
    """Which group each sample belongs to: `size` after one another, whatever process takes them."""
    return [sample // size for sample in samples]


def rows_for_groups(samples: Sequence[int], size: int, batch_size: int, rows: int, seed: int) -> list[int]:
    """Which row of the data each sample takes: one a group, and in an update none twice if there are enough.

    Every epoch has an order of its own, of which what is left over after its last whole update is dropped.
    """
    together = batch_size // size
    updates = max(1, rows // together)  # an epoch

    def place(group: int) -> int:
        update, at = divmod(group, together)
        epoch, update = divmod(update, updates)
        return epoch * rows + (update * together + at) % rows

    return rows_for_samples([place(group) for group in group_numbers(samples, size)], rows, seed)


@dataclass(frozen=True)
class Trajectories:
    """A chunk's samples, as far as they are trained: B of them, and W steps in a row.

    latents  [B, W + 1, C, h, w] before each step and after the last, in the storage's precision
    logps    [B, W] float32, as they were when drawn
    means    [B, W, C, h, w] float32 of the steps, where an objective asked for them
    """

    chunk: Chunk
    condition: Condition
    steps: range
    latents: torch.Tensor
    logps: torch.Tensor
    means: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes held, without the condition's."""
        kept = (self.latents, self.logps, self.means)
        return sum(each.nbytes for each in kept if each is not None)


@torch.no_grad()
def sample_trajectories(
    policy: Policy,
    noisy: Dynamics,
    condition: Condition,
    chunk: Chunk,
    steps: range,
    *,
    seed: int,
    starts: Sequence[int],
    keep_means: bool = False,
) -> tuple[Trajectories, torch.Tensor]:
    """A chunk's trajectories and clean latents [B, C, h, w], with `noisy` steps in the window alone.

    `starts` are numbers that the first noise is drawn by: samples', or, for the same noise, groups'.
    """
    plain, device = policy.dynamics.without_noise(), policy.device
    shape, storage = policy.denoiser.autoencoder.shape, noisy.storage
    x = noise_for_samples(starts, shape, seed).to(device)
    at = torch.zeros(len(x), dtype=torch.long, device=device)
    latents, logps, means = [], [], []
    for i in range(plain.steps):
        if i == steps.start:
            x = round_to_storage(x, storage)
            latents.append(x)
        prediction = policy.predict(x, at + i, condition)
        if i not in steps:
            x = plain.step(x, prediction, at + i).next
            continue
        fresh = noise_for_samples(chunk.samples, shape, seed, f"step {i}").to(device)
        step = noisy.step(x, prediction, at + i, noise=fresh)
        x = step.next
        latents.append(x)
        logps.append(step.logp)
        means.append(step.mean)
    kept = Trajectories(
        chunk,
        condition,
        steps,
        torch.stack(latents, 1).to(storage or x.dtype),
        torch.stack(logps, 1),  # type: ignore[arg-type]  # `check_noise` saw that every step has one
        torch.stack(means, 1) if keep_means else None,
    )
    return kept, x


def check_noise(noisy: Dynamics, steps: range) -> None:
    """Raises InputError for a step without noise: its samples have no probability to be trained by."""
    nothing = torch.zeros(1, 1, 1, 1)
    without = [i for i in steps if noisy.step(nothing, nothing, torch.tensor([i])).logp is None]
    if without:
        raise InputError(
            f"window: steps {without} of 0..{noisy.steps - 1} have no noise, and cannot be trained by it; "
            "expected a window, or a noise.level or noise.table, in which all have some"
        )
