"""Trajectories and advantages -> minibatches of one step each, in optimizer steps."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.distributed

from imagereward.precision import full_precision
from imagereward.tuning.rollouts.trajectories import Trajectories


class StepMinibatch(NamedTuple):
    """One step of a chunk's trajectories, with what its samples are worth.

    counted  [B] samples that take part; the others are there because numbers depend on what is batched
    """

    trajectories: Trajectories
    place: int
    advantages: torch.Tensor
    valid: torch.Tensor
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


def make_minibatches(
    rolled: Sequence[Trajectories],
    counts: Sequence[int],
    advantages_N: torch.Tensor,
    valid_N: torch.Tensor,
    *,
    first: int,
    parts: int,
    rank: int,
    ranks: int,
) -> list[list[StepMinibatch]]:
    """This process's minibatches, for each of `parts` steps of the optimizer in which anything is learned.

    rolled  this process's chunks, [rank::ranks] of all of the update's, which have so many samples: `counts`
    first   the number of the update's first sample, whose credit is row 0

    A chunk without a sample that counts is left out. Every process gets equally many minibatches, so that
    they can wait for each other; where there are too few, one is repeated with a share of 0.
    """
    starts = [sum(counts[:index]) for index in range(len(counts))]
    useful = [int(valid_N[at : at + size].sum()) for at, size in zip(starts, counts, strict=True)]
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
            worth, takes = advantages_N[rows].to(device), valid_N[rows].to(device)
            batches += [StepMinibatch(each, place, worth, takes, share) for place in range(len(each.steps))]
        steps.append(batches)
    return steps
