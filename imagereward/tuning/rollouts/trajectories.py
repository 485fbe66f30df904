"""Trajectories: the sampled steps that an objective trains, and the rows and groups of samples."""

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
    """The group of each sample: `size` consecutive samples are one, whichever process takes them."""
    return [sample // size for sample in samples]


def rows_for_groups(samples: Sequence[int], size: int, batch_size: int, rows: int, seed: int) -> list[int]:
    """The index of each sample's row among `rows` rows: one row a group.

    No row has two groups in an update that has at most as many groups as there are rows. Every epoch has an
    order of its own; rows that do not fill the epoch's last update are skipped in that epoch.
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
    """The W consecutive steps of the window, of the B samples of a chunk.

    condition  of the samples
    steps      indices of the W steps on the sampling grid
    latents    [B, W + 1, C, h, w] before each step and after the last, in the storage's number format
    logps      [B, W] float32: log-probabilities of the steps, averaged over elements, under the weights
               that they were drawn with
    means      [B, W, C, h, w] float32: means of the steps, where an objective asked for them
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
    """A chunk's trajectories and clean latents [B, C, h, w].

    noisy   the dynamics of the steps in `steps`; all others are deterministic
    starts  numbers by which the first noise is drawn: the samples', or, for the same noise, their groups'
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
    """A chunk's clean latents [B, C, h, w], with every step taken by `dynamics`, and none kept.

    starts  numbers by which the first noise is drawn: the samples', or, for the same noise, their groups'
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
    """Raises InputError for a step without noise, which has no log-probability to train by."""
    without = [i for i in steps if not has_noise(noisy, i)]
    if without:
        raise InputError(
            f"window: steps {without} of 0..{noisy.steps - 1} have no noise, and cannot be trained by it; "
            "expected a window, or a noise.level or noise.table, in which all have some"
        )
