"""collect: draws an update's samples in all processes, scores their images, and gathers all rewards."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from imagereward.errors import InputError, RewardError
from imagereward.tuning.data.chunks import Chunk
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.requests import Row
from imagereward.tuning.distributed import gather_objects
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.policy.policy import CURRENT, Policy
from imagereward.tuning.rewards.scoring import (
    RewardPool,
    ScoredBatch,
    ScoringConfig,
    concatenated,
    require_scores,
)
from imagereward.tuning.rewards.weighted import Rewards
from imagereward.tuning.rollouts.advantages import weighted_sum
from imagereward.tuning.rollouts.trajectories import (
    Trajectories,
    group_numbers,
    rows_for_groups,
    sample_latents,
    sample_trajectories,
)
from imagereward.tuning.rollouts.window import Window
from imagereward.tuning.sampling.base import Dynamics


@dataclass(frozen=True)
class RolloutChunk:
    """The B samples of one chunk of this process.

    rows          the row of each sample
    condition     the encoded rows, B of them
    latents       [B, C, h, w] float32: the clean latents at the end of sampling
    trajectories  the steps of the window; None without a window
    """

    chunk: Chunk
    rows: list[Row]
    condition: Condition
    latents: torch.Tensor
    trajectories: Trajectories | None


@dataclass(frozen=True)
class Rollout:
    """The samples of an update with their rewards.

    chunks    this process's chunks, in the order of `plan.mine`
    rewards   {name: [N] float32 on the CPU}, of all N samples of the update over all processes, in the order
              of their numbers; NaN where a reward failed
    groups_N  [N] index of each sample's group, from 0 for the update's first group
    weights   {name: the reward's weight in the sum}, or [N] float64 where it depends on the row
    """

    chunks: list[RolloutChunk]
    rewards: dict[str, torch.Tensor]
    groups_N: torch.Tensor
    weights: dict[str, float | torch.Tensor]

    @property
    def total(self) -> torch.Tensor:
        """The weighted sum of rewards [N] float64, without offset; NaN where one of them is NaN."""
        return weighted_sum(self.rewards, self.weights, self.groups_N)

    def metrics(self, rewards: Rewards, learned_N: torch.Tensor) -> dict[str, float]:
        """Metrics of the rollout, equal in all processes.

        learned_N  [N] bool: whether the objective learns from the sample

        `reward` is the mean weighted sum, `reward/NAME` each reward's mean, `failed` the number of images
        without a reward, and `counted` the share of images that are learned from, 0..1.
        """
        total = self.total
        return {
            "reward": float(total.nanmean()) + rewards.offset,
            **{f"reward/{name}": float(values.nanmean()) for name, values in self.rewards.items()},
            "failed": int((~total.isfinite()).sum()),
            "counted": float(learned_N.float().mean()),
        }


def collect(
    policy: Policy,
    plan: UpdatePlan,
    rows: Sequence[Row],
    rewards: Rewards,
    *,
    window: Window | None,
    dynamics: Dynamics,
    seed: int,
    scoring: ScoringConfig | None = None,
    shared_initial_noise: bool = False,
    keep_means: bool = False,
    sampler: str = CURRENT,
) -> Rollout:
    """Draw `plan.group` samples for each row of an update, and score them; all processes must call this.

    plan      the update's samples and chunks; every process needs at least one chunk
    rows      all rows of the training data; each group of samples takes one row
    rewards   scores the decoded images [B, 3, H, W] in [0, 1]
    window    steps to keep in `trajectories`. `dynamics` takes these steps, and all others are without noise.
              None: `dynamics` takes every step, and no step is kept
    dynamics  the policy's sampling grid, with or without noise
    seed      decides, with the sample's number, about rows, noise and the window
    scoring   how rewards are computed and retried; default: `ScoringConfig()`
    shared_initial_noise   the samples of a group start from the same noise
    keep_means             keep the means of the window's steps as well
    sampler   the weights that draw: "current", or the name of a snapshot of the policy, such as "old"

    While threads score the images of a chunk, the next chunk is drawn. Raises RewardError for a reward that
    failed for all images, NonFiniteScoreError for an image that is not finite, InputError for an unknown
    snapshot, and for a reward of whole groups on a plan that divides groups between processes.
    """
    if rewards.of_groups and not plan.whole_groups:
        raise InputError(
            f"reward {rewards.of_groups[0]} is given whole groups, and the plan divides them between "
            "processes; expected plan.in_groups(group, whole=True)"
        )
    drawn = []
    with (
        policy.using(sampler),
        RewardPool(rewards, scoring or ScoringConfig(), plan.group) as pool,
    ):
        for chunk in plan.mine:
            starts = group_numbers(chunk.samples, plan.group) if shared_initial_noise else chunk.samples
            places = rows_for_groups(chunk.samples, plan.group, plan.batch_size, len(rows), seed)
            asked = [rows[place] for place in places]
            condition = _encoded(policy, rows, places)
            trajectories = None
            if window is None:
                latents = sample_latents(policy, dynamics, condition, chunk, seed=seed, starts=starts)
            else:
                steps = window.draw(dynamics.steps, seed, plan.update)
                trajectories, latents = sample_trajectories(
                    policy, dynamics, condition, chunk, steps, seed=seed, starts=starts, keep_means=keep_means
                )
            pool.submit(policy.denoiser.autoencoder.decode(latents), asked)
            drawn.append(RolloutChunk(chunk, asked, condition, latents, trajectories))
        scored = pool.results()
    found = _of_all_processes(plan, drawn, scored)
    numbers = range(plan.first, plan.first + plan.batch_size)
    places = rows_for_groups(numbers, plan.group, plan.batch_size, len(rows), seed)
    weights = rewards.weights_for([rows[place] for place in places], policy.denoiser.resolution)
    rollout = Rollout(drawn, found.rewards, torch.arange(plan.batch_size) // plan.group, weights)
    _require_sums(rollout, found, plan)
    return rollout


def _require_sums(rollout: Rollout, found: ScoredBatch, plan: UpdatePlan) -> None:
    """Raises RewardError if every sample lacks one of the rewards, so that no weighted sum is a number."""
    if not rollout.total.isfinite().any():
        raise RewardError(
            f"update {plan.update + 1}: every image lacks one of the rewards {', '.join(found.rewards)}; "
            f"the last causes: {found.causes}; resume=true goes on from the last checkpoint"
        )


def _of_all_processes(
    plan: UpdatePlan, drawn: Sequence[RolloutChunk], scored: Sequence[ScoredBatch]
) -> ScoredBatch:
    """The scores of all samples of the update, in the samples' order, from those of this process's chunks."""
    samples = [each.chunk.samples for each in drawn]
    every = gather_objects(list(zip(samples, scored, strict=True)), plan.ranks)
    in_order = sorted((each for mine in every for each in mine), key=lambda each: each[0])
    found = concatenated([batch for _, batch in in_order])
    require_scores(found, f"update {plan.update + 1}")
    return found


def _encoded(policy: Policy, rows: Sequence[Row], places: Sequence[int]) -> Condition:
    """The condition of the rows with the indices `places`; each row is encoded once, even if repeated."""
    distinct = list(dict.fromkeys(places))
    condition = policy.denoiser.encode([rows[place] for place in distinct])
    return condition[[distinct.index(place) for place in places]]
