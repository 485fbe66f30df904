"""share_out: gives every process equally many passes; make_minibatches: passes over sampling steps."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from imagereward.precision import full_precision
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.rollouts.trajectories import Trajectories


class StepMinibatch(NamedTuple):
    """One sampling step of a chunk's B samples, with their advantages.

    window_step index of the step in the window, 0..W - 1
    advantages  [B] float32
    valid       [B] bool: whether the sample has an advantage. Samples without an advantage stay in the batch,
                because the last bits of a matrix product depend on the batch, and probability ratios must
                start at exactly 1
    share       the minibatch's weight in the loss of its optimizer step, 0..1
    """

    trajectories: Trajectories
    window_step: int
    advantages: torch.Tensor
    valid: torch.Tensor
    share: float

    @property
    def before(self) -> torch.Tensor:
        """x_i [B, C, h, w] float32: the latents before the step."""
        return full_precision(self.trajectories.latents[:, self.window_step])

    @property
    def after(self) -> torch.Tensor:
        """x_{i+1} [B, C, h, w], in the number format of stored latents: the latents after the step."""
        return self.trajectories.latents[:, self.window_step + 1]

    @property
    def step_index(self) -> torch.Tensor:
        """i [B]: the step's index on the sampling grid, the same for every sample."""
        return torch.full(
            (len(self.advantages),), self.trajectories.steps[self.window_step], device=self.after.device
        )


class Unit(NamedTuple):
    """Samples that one process computes in one pass.

    owner   rank of the process
    weight  number of samples that count; a unit with 0 is left out
    part    index of the optimizer step that learns from them, within the update
    """

    owner: int
    weight: int
    part: int


class Turn(NamedTuple):
    """One forward and backward pass.

    unit        index of the unit; None: any samples of this process, since the share is 0
    pass_index  index of the pass over the unit, 0..passes - 1: a sampling step, or a training time
    share       the pass's weight in the loss of its optimizer step, 0..1
    """

    unit: int | None
    pass_index: int
    share: float


def share_out(units: Sequence[Unit], *, rank: int, ranks: int, passes: int) -> list[list[Turn]]:
    """The passes of process `rank`: a list for each step of the optimizer that has anything to learn.

    A unit's share is its weight / the weight of all units of the optimizer step, spread evenly over `passes`
    passes. Every process gets equally many passes, because processes wait for each other in each backward
    pass: a process with fewer units than another gets passes with a share of 0, which add nothing.
    """
    steps = []
    for part in sorted({each.part for each in units if each.weight}):
        useful = [(index, each) for index, each in enumerate(units) if each.part == part and each.weight]
        total = sum(each.weight for _, each in useful)
        longest = max(sum(each.owner == owner for _, each in useful) for owner in range(ranks))
        mine: list[tuple[int | None, float]] = [
            (index, each.weight / total / passes) for index, each in useful if each.owner == rank
        ]
        mine += [(None, 0.0)] * (longest - len(mine))
        steps.append([Turn(unit, place, share) for unit, share in mine for place in range(passes)])
    return steps


def part_of(chunk: int, chunks: int, parts: int) -> int:
    """The optimizer step, 0..parts - 1, that learns from chunk `chunk` of an update of `chunks` chunks."""
    return chunk * parts // chunks


def make_minibatches(
    trajectories: Sequence[Trajectories],
    plan: UpdatePlan,
    advantages_N: torch.Tensor,
    valid_N: torch.Tensor,
    *,
    parts: int,
) -> list[list[StepMinibatch]]:
    """This process's minibatches of trajectories: a list for each step of the optimizer.

    trajectories     of the chunks in `plan.mine`
    advantages_N     of all N = plan.batch_size samples of the update, in the order of their numbers
    valid_N          [N] bool: whether the sample has an advantage
    parts            steps of the optimizer; each takes about 1 / parts of the update's chunks, consecutive

    Chunks, and optimizer steps, without a valid sample are left out. See `share_out`.
    """
    samples = [[number - plan.first for number in chunk.samples] for chunk in plan.chunks]
    own = {each.chunk.index: each for each in trajectories}
    units = [
        Unit(owner, int(valid_N[numbers].sum()), part_of(index, len(samples), parts))
        for index, (owner, numbers) in enumerate(zip(plan.owners, samples, strict=True))
    ]
    steps = share_out(units, rank=plan.rank, ranks=plan.ranks, passes=len(trajectories[0].steps))

    def minibatch(turn: Turn) -> StepMinibatch:
        index = plan.mine[0].index if turn.unit is None else turn.unit
        each, numbers = own[index], samples[index]
        advantages_B, valid_B = (of[numbers].to(each.latents.device) for of in (advantages_N, valid_N))
        return StepMinibatch(each, turn.pass_index, advantages_B, valid_B, turn.share)

    return [[minibatch(turn) for turn in turns] for turns in steps]
