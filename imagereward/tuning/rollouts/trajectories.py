"""Trajectories: the kept sampling steps of a chunk; sampling with and without them; rows of groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from imagereward.errors import InputError
from imagereward.tuning.data.chunks import Chunk
from imagereward.tuning.data.seeding import noise_for_samples, rows_for_samples
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.sampling.base import Dynamics, round_to_storage


def group_numbers(samples: Sequence[int], size: int) -> list[int]:
    """The number of each sample's group: sample // size, counted from the start of the run."""
    return [sample // size for sample in samples]


def rows_for_groups(samples: Sequence[int], size: int, batch_size: int, rows: int, seed: int) -> list[int]:
    """The index 0..rows - 1 of each sample's row; all samples of a group have the same row.

    samples     the samples' numbers, counted from the start of the run
    size        samples in a group
    batch_size  samples in an update
    rows        number of rows in the training data
    seed        decides the order of rows; every epoch has another order

    The groups of an update have different rows, unless an update has more groups than there are rows. Rows
    left over at the end of an epoch, too few for an update, are skipped in that epoch.
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
    """The W consecutive steps of the window, for the B samples of a chunk.

    condition  the samples' encoded rows, B of them
    steps      indices of the W steps on the sampling grid
    latents    [B, W + 1, C, h, w]: before each step, and after the last, in the number format that latents
               are stored in
    logps      [B, W] float32: log-probability of each step, averaged over elements, under the weights that
               drew the step
    means      [B, W, C, h, w] float32: means of the steps; None unless the objective asked for them
    """

    chunk: Chunk
    condition: Condition
    steps: range
    latents: torch.Tensor
    logps: torch.Tensor
    means: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, without the condition's."""
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
    """A chunk's trajectories, and its clean latents [B, C, h, w].

    noisy   takes the steps in `steps`; all other steps are deterministic
    starts  numbers [B] that seed the first noise: the samples' numbers, or the groups' numbers, so that the
            samples of a group start from the same noise
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


@torch.no_grad()
def sample_latents(
    policy: Policy,
    dynamics: Dynamics,
    condition: Condition,
    chunk: Chunk,
    *,
    seed: int,
    starts: Sequence[int],
) -> torch.Tensor:
    """A chunk's clean latents [B, C, h, w]; `dynamics` takes every step, and no step is kept.

    starts  numbers [B] that seed the first noise, as in `sample_trajectories`
    """
    shape, device = policy.denoiser.autoencoder.shape, policy.device
    x = noise_for_samples(starts, shape, seed).to(device)
    at = torch.zeros(len(x), dtype=torch.long, device=device)
    for i in range(dynamics.steps):
        fresh = None
        if has_noise(dynamics, i):
            fresh = noise_for_samples(chunk.samples, shape, seed, f"step {i}").to(device)
        x = dynamics.step(x, policy.predict(x, at + i, condition), at + i, noise=fresh).next
    return x


def has_noise(dynamics: Dynamics, i: int) -> bool:
    """Whether step i of the sampling grid adds noise, and so has a log-probability."""
    nothing = torch.zeros(1, 1, 1, 1)
    return dynamics.step(nothing, nothing, torch.tensor([i])).logp is not None


def check_noise(noisy: Dynamics, steps: range) -> None:
    """Raises InputError if a step in `steps` has no noise: it has no log-probability to train."""
    without = [i for i in steps if not has_noise(noisy, i)]
    if without:
        raise InputError(
            f"window: steps {without} of 0..{noisy.steps - 1} have no noise, and so no probability to train; "
            "expected a window, or a noise.level or noise.table, with noise in all steps of the window"
        )
