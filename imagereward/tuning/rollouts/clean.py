"""CleanBatch: clean latents, alone or in pairs, that an objective adds noise to and learns from."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.requests import prompt_of
from imagereward.tuning.data.seeding import noise_for_samples
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.rollouts.collect import Rollout
from imagereward.tuning.rollouts.minibatches import Unit, part_of, share_out
from imagereward.tuning.rollouts.times import Times


class CleanBatch(NamedTuple):
    """B items of one pass: a sample each, or a pair of samples of one prompt.

    latents    [K, B, C, h, w] float32: K = 1 sample an item, or K = 2, first the chosen and then the rejected
    condition  of the B items
    prompts    of the B items
    samples    number [B] of each item's first sample; seeds its time and its noise, which a pair shares
    values     [B] float32: each item's advantage or weight
    pass_index index of the training time among those of an item, from 0
    share      the batch's weight in the loss of its optimizer step, 0..1
    """

    latents: torch.Tensor
    condition: Condition
    prompts: list[str]
    samples: list[int]
    values: torch.Tensor
    pass_index: int
    share: float


class Noised(NamedTuple):
    """A `CleanBatch` with noise: K * B rows, the first samples of all items before the second.

    clean, noise, x  [K * B, C, h, w]: clean latents, standard normal noise, and the clean latents with it
    time             [K * B] training times
    condition        of K * B rows
    """

    clean: torch.Tensor
    noise: torch.Tensor
    x: torch.Tensor
    time: torch.Tensor
    condition: Condition


def add_noise(policy: Policy, batch: CleanBatch, times: Times, seed: int) -> Noised:
    """The batch's latents with noise; the samples of a pair get the same time and the same noise."""
    dynamics, kinds = policy.dynamics, len(batch.latents)
    time = times.of_samples(dynamics, batch.samples, seed, batch.pass_index).to(policy.device)
    noise = noise_for_samples(
        batch.samples, batch.latents.shape[2:], seed, f"training noise {batch.pass_index}"
    )
    noise, time = noise.to(policy.device).repeat(kinds, 1, 1, 1), time.repeat(kinds)
    clean = batch.latents.flatten(0, 1).to(policy.device)
    condition = Condition.cat([batch.condition] * kinds) if kinds > 1 else batch.condition
    return Noised(clean, noise, dynamics.add_noise(clean, noise, time), time, condition)


def mean_square(difference: torch.Tensor) -> torch.Tensor:
    """The mean square [B] over all dimensions but the first."""
    return difference.square().flatten(1).mean(1)


def distance_from(policy: Policy, snapshot: str, noised: Noised, prediction: torch.Tensor) -> torch.Tensor:
    """Mean square [B] of the prediction - that of a snapshot's weights, at the same noised samples."""
    with policy.using(snapshot):
        other = policy.predict_at(noised.x, noised.time, noised.condition)
    return mean_square(prediction - other)


def clean_batches(
    rollout: Rollout,
    plan: UpdatePlan,
    items_I_K: torch.Tensor,
    values_I: torch.Tensor,
    *,
    passes: int,
    parts: int = 1,
) -> list[list[CleanBatch]]:
    """This process's batches of a rollout's items: a list for each step of the optimizer.

    items_I_K  indices 0..N - 1 of samples of the update, K an item; all samples of an item are on one process
    values_I   float32: each item's advantage or weight
    passes     training times of each item; each is a batch of its own
    parts      steps of the optimizer; each takes the items of about 1 / parts of the update's chunks

    A batch has at most plan.micro_batch samples. All processes must have the same items. A process with fewer
    batches than another gets batches with a share of 0, see `share_out`.
    """
    chunks, owners = plan.chunks, plan.owners
    chunk_of = [index for index, chunk in enumerate(chunks) for _ in chunk.samples]
    together = max(1, plan.micro_batch // items_I_K.shape[1])
    by_turn: dict[tuple[int, int], list[int]] = {}  # (optimizer step, process) -> its items
    for item, first in enumerate(items_I_K[:, 0].tolist()):
        chunk = chunk_of[first]
        by_turn.setdefault((part_of(chunk, len(chunks), parts), owners[chunk]), []).append(item)
    units, members = [], []
    for (part, owner), items in sorted(by_turn.items()):
        blocks = [items[at : at + together] for at in range(0, len(items), together)]
        units += [Unit(owner, len(block), part) for block in blocks]
        members += blocks
    samples = _Samples(rollout, plan.first)
    spare = torch.full((1, items_I_K.shape[1]), plan.mine[0].samples[0] - plan.first)
    made: dict[int | None, CleanBatch] = {}  # the passes of a unit share its tensors
    steps = share_out(units, rank=plan.rank, ranks=plan.ranks, passes=passes)
    for turn in (turn for turns in steps for turn in turns):
        if turn.unit is None:
            made[None] = samples.batch(spare, torch.zeros(1))
        elif turn.unit not in made:
            made[turn.unit] = samples.batch(items_I_K[members[turn.unit]], values_I[members[turn.unit]])
    return [
        [made[turn.unit]._replace(pass_index=turn.pass_index, share=turn.share) for turn in turns]
        for turns in steps
    ]


class _Samples:
    """This process's samples of a rollout, found by their index in the update, whose first has a number."""

    def __init__(self, rollout: Rollout, first: int):
        self.first, self.chunks = first, rollout.chunks
        self.where = {
            number - first: (index, row)
            for index, each in enumerate(rollout.chunks)
            for row, number in enumerate(each.chunk.samples)
        }

    def batch(self, items_B_K: torch.Tensor, values_B: torch.Tensor) -> CleanBatch:
        """The batch of these items, for its first pass and without a share."""
        items = items_B_K.tolist()
        latents = torch.stack([self._latents(column) for column in zip(*items, strict=True)])
        found = [self.where[item[0]] for item in items]
        condition = Condition.cat([self.chunks[chunk].condition[[row]] for chunk, row in found])
        prompts = [prompt_of(self.chunks[chunk].rows[row]) for chunk, row in found]
        numbers = [item[0] + self.first for item in items]
        return CleanBatch(latents, condition, prompts, numbers, values_B.float().to(latents.device), 0, 0.0)

    def _latents(self, indices: Sequence[int]) -> torch.Tensor:
        found = (self.where[index] for index in indices)
        return torch.stack([self.chunks[chunk].latents[row] for chunk, row in found])
