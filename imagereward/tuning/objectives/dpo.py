"""DPO: learns from pairs of a chosen and a rejected image, from a file or drawn and scored.

Diffusion-DPO: Wallace et al. 2023, arXiv:2311.12908, equation 14.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import torch
from pydantic import Field

from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.requests import Row
from imagereward.tuning.objectives.base import Objective
from imagereward.tuning.objectives.config import ObjectiveContext
from imagereward.tuning.objectives.sampled import SampledConfig, SampleSource
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.rewards.weighted import Rewards
from imagereward.tuning.rollouts.advantages import best_and_worst, weighted_sum
from imagereward.tuning.rollouts.clean import CleanBatch, add_noise, clean_batches, mean_square
from imagereward.tuning.rollouts.times import Times

BETA = "strength with which the policy is held to the reference, relative to the error's units; published: "


class OnlineDPOConfig(SampledConfig):
    """The config of DPO on drawn images: in each group the best against the worst by reward."""

    objective: Literal["dpo_online"] = Field("dpo_online", description="DPO on drawn and scored images")
    beta: float = Field(gt=0, description=BETA + "5000 for U-Nets, 100 for flow models")
    sampler: Literal["current", "reference"] = Field(
        "current", description="the weights that draw: the learner's, or the reference's"
    )
    times: Times = Field(Times(), description="the training times of each pair in an update")

    def make(self, job: ObjectiveContext) -> Objective:
        self.times.passes(self.steps)
        pairs = DrawnPairs(self, job.rows, job.rewards_for("DPO on drawn images"))
        return self.beside(job, DPO(pairs, self.beta, self.times, self.seed))


class PairSource(Protocol):
    """Where DPO's pairs come from."""

    @property
    def prompts(self) -> Sequence[str]:
        """All prompts of the training data."""

    def minibatches(self, policy: Policy, plan: UpdatePlan, times: Times) -> Iterator[Sequence[Any]]:
        """This process's minibatches of an update, as `Objective.minibatches` gives them."""

    def batch(self, policy: Policy, minibatch: Any) -> CleanBatch:
        """The minibatch's pairs: latents [2, B, C, h, w], the chosen first."""

    def prompts_in(self, minibatch: Any) -> Sequence[str]:
        """The minibatch's prompts."""

    def end_update(self) -> dict[str, float]:
        """Metrics of the update's pairs."""


class DPO(Objective):
    """Makes the chosen image of a pair more probable than the rejected, relative to the reference.

    With the errors e = mean (predict(x_t, t) - target)^2 of the chosen (w) and the rejected image (l), at the
    same time and with the same noise, under the policy and the reference:
        L = -log sigmoid(-beta / 2 ((e_w - e_w,ref) - (e_l - e_l,ref)))
    averaged over pairs and their training times. At the reference L = log 2.

    pairs  the source of pairs
    beta   see the loss
    times  training times of each pair in an update
    seed   seeds times and noise, with the number of the pair's first sample
    """

    def __init__(self, pairs: PairSource, beta: float, times: Times, seed: int = 0):
        self.pairs, self.beta, self.times, self.seed = pairs, beta, times, seed

    @property
    def prompts(self) -> Sequence[str]:
        """The prompts of all training data."""
        return self.pairs.prompts

    @property
    def snapshots(self) -> tuple[str, ...]:
        """("reference",)."""
        return ("reference",)

    def minibatches(self, policy: Policy, plan: UpdatePlan) -> Iterator[Sequence[Any]]:
        """The source's minibatches: pairs at one training time each."""
        yield from self.pairs.minibatches(policy, plan, self.times)

    def loss(self, policy: Policy, minibatch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of the class.

        Metrics: `accuracy`, the share of pairs of which the policy, relative to the reference, prefers the
        chosen image; `chosen` and `rejected`, the errors relative to the reference.
        """
        noised = add_noise(policy, self.pairs.batch(policy, minibatch), self.times, self.seed)
        target = policy.dynamics.target(noised.clean, noised.noise, noised.time)
        error = mean_square(policy.predict_at(noised.x, noised.time, noised.condition) - target)
        with policy.using("reference"):
            base = mean_square(policy.predict_at(noised.x, noised.time, noised.condition) - target)
        chosen, rejected = (error - base).chunk(2)
        prefers = ((rejected - chosen).sign() + 1) / 2  # 1/2 where both are equal
        metrics = {"accuracy": prefers, "chosen": chosen, "rejected": rejected}
        return dpo_loss(chosen, rejected, self.beta).mean(), {
            name: values.detach().mean() for name, values in metrics.items()
        }

    def end_update(self, policy: Policy, update: int) -> dict[str, float]:
        """The metrics of the source."""
        return self.pairs.end_update()

    def prompts_in(self, minibatch: Any) -> Sequence[str]:
        """The minibatch's prompts."""
        return self.pairs.prompts_in(minibatch)


def dpo_loss(chosen_B: torch.Tensor, rejected_B: torch.Tensor, beta: float) -> torch.Tensor:
    """-log sigmoid(-beta / 2 (chosen - rejected)), [B].

    chosen_B, rejected_B  mean squared errors of the policy - those of the reference
    """
    return torch.nn.functional.softplus(beta / 2 * (chosen_B - rejected_B))


class DrawnPairs:
    """The best and the worst of each drawn group, by the weighted sum of rewards.

    Groups whose rewards are all equal, or without two rewards, are left out by all processes alike, and are
    counted in the metrics of the update: `counted` is the share of images in pairs.
    """

    def __init__(self, config: OnlineDPOConfig, rows: Sequence[Row], rewards: Rewards):
        self.config, self.source = config, SampleSource(config, rows, rewards)

    @property
    def prompts(self) -> list[str]:
        """The prompts of all rows of the training data."""
        return self.source.prompts

    def minibatches(self, policy: Policy, plan: UpdatePlan, times: Times) -> Iterator[list[CleanBatch]]:
        """Draw and score the update's images; a batch has pairs of this process's groups."""
        grouped = self.source.plan(plan, whole_groups=True)
        if grouped is None:
            yield []  # the trainer raises InputError for it, in every process
            return
        rollout = self.source.draw(policy, grouped, self.config.sampler)
        total = weighted_sum(rollout.rewards, self.source.rewards.weights, rollout.groups_N)
        pairs = torch.stack(best_and_worst(total, rollout.groups_N), 1)
        learned = torch.zeros(len(total), dtype=torch.bool)
        learned[pairs.flatten()] = True
        self.source.count(rollout, learned, plan.update)
        yield from clean_batches(
            rollout,
            grouped,
            pairs,
            torch.ones(len(pairs)),
            passes=times.passes(policy.dynamics.steps),
            parts=self.config.optimizer_steps,
        )

    def batch(self, policy: Policy, minibatch: CleanBatch) -> CleanBatch:
        """The minibatch itself."""
        return minibatch

    def prompts_in(self, minibatch: CleanBatch) -> list[str]:
        """The minibatch's prompts."""
        return minibatch.prompts

    def end_update(self) -> dict[str, float]:
        """The metrics of the rollout, see `Rollout.metrics`."""
        return self.source.metrics
