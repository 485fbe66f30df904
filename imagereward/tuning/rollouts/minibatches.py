"""make_minibatches: turns trajectories and advantages into minibatches of one sampling step each."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from imagereward.precision import full_precision
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.rollouts.trajectories import Trajectories


class StepMinibatch(NamedTuple):
    """One sampling step of a chunk's B samples, with their advantages.

    place       index of the step in the window, 0..W - 1
    advantages  [B] float32
    valid       [B] bool: whether the sample has an advantage. Samples without an advantage stay in the batch,
                because the last bits of a matrix product depend on the batch, and probability ratios must
                start at exactly 1
    share       the minibatch's weight in the loss of its optimizer step, 0..1
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
        """x_{i+1} [B, C, h, w], in the number format of stored latents: the latents after the step."""
        return self.trajectories.latents[:, self.place + 1]

    @property
    def step_index(self) -> torch.Tensor:
        """i [B]: the step's index on the sampling grid, the same for every sample."""
        return torch.full(
            (len(self.advantages),), self.trajectories.steps[self.place], device=self.after.device
        )


def make_minibatches(
    trajectories: Sequence[Trajectories],
    plan: UpdatePlan,
    advantages_N: torch.Tensor,
    valid_N: torch.Tensor,
    *,
    parts: int,
) -> list[list[StepMinibatch]]:
    """This process's minibatches: a list for each step of the optimizer.

    trajectories     of the chunks in `plan.mine`
    advantages_N     of all N = plan.batch_size samples of the update, in the order of their numbers
    valid_N          [N] bool: whether the sample has an advantage
    parts            steps of the optimizer; each takes about 1 / parts of the update's chunks, consecutive

    A chunk's share is its number of valid samples / that of the optimizer step, spread evenly over the
    window's steps. Chunks, and optimizer steps, without a valid sample are left out. Every process gets
    equally many minibatches, because processes wait for each other in each backward pass. A process with too
    few repeats its first chunk with a share of 0, which adds nothing to the gradient.
    """
    samples = [[number - plan.first for number in chunk.samples] for chunk in plan.chunks]
    valid = [int(valid_N[each].sum()) for each in samples]  # how many of each chunk
    owners = plan.owners
    own = {each.chunk.index: each for each in trajectories}
    steps = []
    for part in range(parts):
        chunks = [index for index in range(len(samples)) if index * parts // len(samples) == part]
        useful = [index for index in chunks if valid[index]]
        if not useful:
            continue
        total = sum(valid[index] for index in useful)
        longest = max(sum(owners[index] == rank for index in useful) for rank in range(plan.ranks))
        mine = [index for index in useful if owners[index] == plan.rank]
        shares = [(index, valid[index] / total) for index in mine]
        shares += [(plan.mine[0].index, 0.0)] * (longest - len(mine))
        batches = []
        for index, share in shares:
            each = own[index]
            device = each.latents.device
            share /= len(each.steps)
            advantages_B, valid_B = (of[samples[index]].to(device) for of in (advantages_N, valid_N))
            batches += [
                StepMinibatch(each, place, advantages_B, valid_B, share) for place in range(len(each.steps))
            ]
        steps.append(batches)
    return steps
