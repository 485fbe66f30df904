"""make_minibatches: trajectories and advantages as minibatches of one sampling step each."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from imagereward.precision import full_precision
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.rollouts.trajectories import Trajectories


class StepMinibatch(NamedTuple):
    """One sampling step of a chunk's B samples, with their advantages.

    place       index of the step in the window, 0..W - 1
    advantages  [B]
    valid       [B] whether the sample has an advantage. The others are in the batch because the last bits of
                matrix products depend on the batch, and ratios of probabilities must start at exactly 1
    share       the minibatch's weight in the loss of its optimizer step
    """

    trajectories: Trajectories
    place: int
    advantages: torch.Tensor
    valid: torch.Tensor
    share: float

    @property
    def before(self) -> torch.Tensor:
        """x_i [B, C, h, w] float32: the latents before the step."""
        return full_precision(self.trajectories.latents[:, self.place])

    @property
    def after(self) -> torch.Tensor:
        """x_{i+1} [B, C, h, w], in the storage's number format: the latents after the step."""
        return self.trajectories.latents[:, self.place + 1]

    @property
    def step_index(self) -> torch.Tensor:
        """i [B]: the step's index on the sampling grid, the same for every sample."""
        return torch.full(
            (len(self.advantages),), self.trajectories.steps[self.place], device=self.after.device
        )


def make_minibatches(
    rolled: Sequence[Trajectories],
    plan: UpdatePlan,
    advantages_N: torch.Tensor,
    valid_N: torch.Tensor,
    *,
    parts: int,
) -> list[list[StepMinibatch]]:
    """This process's minibatches, for each of `parts` steps of the optimizer in which anything is learned.

    rolled           the trajectories of `plan.mine`
    advantages_N     of all N = plan.batch_size samples of the update, in the order of their numbers
    valid_N          which of them have an advantage
    parts            steps of the optimizer; each takes an equal run of the update's chunks

    A chunk without a valid sample is left out. Every process gets equally many minibatches, because
    processes wait for each other in each; where one has too few, its first chunk is repeated with a share
    of 0, which adds nothing to the gradient.
    """
    rows = [[sample - plan.first for sample in chunk.samples] for chunk in plan.chunks]
    useful = [int(valid_N[each].sum()) for each in rows]
    owners = plan.owners
    own = {each.chunk.index: each for each in rolled}
    steps = []
    for part in range(parts):
        members = [index for index in range(len(rows)) if index * parts // len(rows) == part]
        total = sum(useful[index] for index in members)
        if not total:
            continue
        alive = [index for index in members if useful[index]]
        most = max(sum(owners[index] == other for index in alive) for other in range(plan.ranks))
        mine = [index for index in alive if owners[index] == plan.rank]
        shares = [(index, useful[index] / total) for index in mine]
        shares += [(plan.mine[0].index, 0.0)] * (most - len(mine))
        batches = []
        for index, share in shares:
            each = own[index]
            device = each.latents.device
            share /= len(each.steps)
            worth, takes = advantages_N[rows[index]].to(device), valid_N[rows[index]].to(device)
            batches += [StepMinibatch(each, place, worth, takes, share) for place in range(len(each.steps))]
        steps.append(batches)
    return steps
