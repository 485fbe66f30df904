"""Trajectories as frozen tensors: sampled, kept where they are trained, and dealt out as minibatches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed
from pydantic import Field, model_validator

from imagereward.errors import InputError
from imagereward.precision import full_precision
from imagereward.tuning.batches import Chunk
from imagereward.tuning.config import Config
from imagereward.tuning.denoisers import Condition
from imagereward.tuning.dynamics import Dynamics, rounded
from imagereward.tuning.policy import Policy
from imagereward.tuning.randomness import generator, noise_of, rows_of


class Window(Config):
    """Which steps have noise and are trained; before and after them sampling is deterministic.

    size   so many steps in a row, drawn anew for every update from first..last; 0: all of these
    last   default: the last but one, for in the last one there is hardly noise left
    """

    size: int = Field(
        0, ge=0, description="trained steps in a row, drawn for each update; 0: all of first..last"
    )
    first: int = Field(0, ge=0, description="index of the first step that may be trained")
    last: int | None = Field(None, ge=0, description="index of the last one; default: steps - 2")

    @model_validator(mode="after")
    def _in_order(self):
        if self.last is not None and self.first > self.last:
            raise ValueError(f"first={self.first} is after last={self.last}")
        return self

    def bounds(self, steps: int) -> range:
        """The steps it may take. Raises InputError if a grid of so many does not have them."""
        last = max(0, steps - 2) if self.last is None else self.last
        allowed = range(self.first, last + 1)
        if last >= steps or not allowed:
            raise InputError(f"window: {self.first}..{last} of {steps} sampling steps, 0..{steps - 1}")
        if self.size > len(allowed):
            raise InputError(f"window.size={self.size}: from {self.first} to {last} are {len(allowed)} steps")
        return allowed

    def draw(self, steps: int, seed: int, update: int) -> range:
        """An update's steps, the same for all of its samples, in every process."""
        allowed = self.bounds(steps)
        size = self.size or len(allowed)
        more = torch.randint(len(allowed) - size + 1, (), generator=generator(seed, "window", update))
        start = allowed.start + int(more)
        return range(start, start + size)


def groups_of(samples: Sequence[int], size: int) -> list[int]:
    """Which group each sample belongs to: `size` after one another, whatever process takes them."""
    return [sample // size for sample in samples]


def repeated_rows(samples: Sequence[int], size: int, batch_size: int, rows: int, seed: int) -> list[int]:
    """Which row of the data each sample takes: one a group, and in an update none twice if there are enough.

    Every epoch has an order of its own, of which what is left over after its last whole update is dropped.
    """
    together = batch_size // size
    updates = max(1, rows // together)  # an epoch

    def place(group: int) -> int:
        update, at = divmod(group, together)
        epoch, update = divmod(update, updates)
        return epoch * rows + (update * together + at) % rows

    return rows_of([place(group) for group in groups_of(samples, size)], rows, seed)


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
def roll(
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
    shape, storage = policy.denoiser.latents.shape, noisy.storage
    x = noise_of(starts, shape, seed).to(device)
    at = torch.zeros(len(x), dtype=torch.long, device=device)
    latents, logps, means = [], [], []
    for i in range(plain.steps):
        if i == steps.start:
            x = rounded(x, storage)
            latents.append(x)
        prediction = policy.predict(x, at + i, condition)
        if i not in steps:
            x = plain.step(x, prediction, at + i).next
            continue
        fresh = noise_of(chunk.samples, shape, seed, f"step {i}").to(device)
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


class Minibatch(NamedTuple):
    """One step of a chunk's trajectories, with what its samples are worth.

    counted  [B] samples that take part; the others are there because numbers depend on what is batched
    """

    trajectories: Trajectories
    place: int
    advantages: torch.Tensor
    counted: torch.Tensor
    share: float

    @property
    def before(self) -> torch.Tensor:
        """The samples at the step, in full precision."""
        return full_precision(self.trajectories.latents[:, self.place])

    @property
    def after(self) -> torch.Tensor:
        """What they became."""
        return self.trajectories.latents[:, self.place + 1]

    @property
    def step_index(self) -> torch.Tensor:
        """Its place on the sampling grid, for every sample."""
        return torch.full(
            (len(self.advantages),), self.trajectories.steps[self.place], device=self.after.device
        )


def deal(
    rolled: Sequence[Trajectories],
    counts: Sequence[int],
    advantages_N: torch.Tensor,
    counted_N: torch.Tensor,
    *,
    first: int,
    parts: int,
    rank: int,
    ranks: int,
) -> list[list[Minibatch]]:
    """This process's minibatches, for each of `parts` steps of the optimizer in which anything is learned.

    rolled  this process's chunks, [rank::ranks] of all of the update's, which have so many samples: `counts`
    first   the number of the update's first sample, whose credit is row 0

    A chunk without a sample that counts is left out. Every process gets equally many minibatches, so that
    they can wait for each other; where there are too few, one is repeated with a share of 0.
    """
    starts = [sum(counts[:index]) for index in range(len(counts))]
    useful = [int(counted_N[at : at + size].sum()) for at, size in zip(starts, counts, strict=True)]
    own = {each.chunk.index: each for each in rolled}
    steps = []
    for part in range(parts):
        members = [index for index in range(len(counts)) if index * parts // len(counts) == part]
        total = sum(useful[index] for index in members)
        if not total:
            continue
        alive = [index for index in members if useful[index]]
        most = max(len([index for index in alive if index % ranks == other]) for other in range(ranks))
        mine = [index for index in alive if index % ranks == rank]
        shares = [(index, useful[index] / total) for index in mine]
        shares += [(rank, 0.0)] * (most - len(mine))
        batches = []
        for index, share in shares:
            each = own[index]
            rows = [sample - first for sample in each.chunk.samples]
            device = each.latents.device
            share /= len(each.steps)
            worth, takes = advantages_N[rows].to(device), counted_N[rows].to(device)
            batches += [Minibatch(each, place, worth, takes, share) for place in range(len(each.steps))]
        steps.append(batches)
    return steps
