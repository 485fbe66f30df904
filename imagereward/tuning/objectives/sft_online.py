"""Online SFT: noise prediction on the generator's own best images.

RAFT, Dong et al. 2023, arXiv:2304.06767 (the best image of a group); reward-weighted regression, Peters and
Schaal 2007, on diffusion models Black et al. 2023, arXiv:2305.13301 (all images, weighted by exp(reward)).
"""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field, model_validator

from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.objectives.base import Objective
from imagereward.tuning.objectives.config import ObjectiveContext
from imagereward.tuning.objectives.sampled import AdvantageConfig, SampledConfig
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.rollouts.advantages import Advantages, top_mask
from imagereward.tuning.rollouts.clean import CleanBatch, add_noise, clean_batches, distance_from, mean_square
from imagereward.tuning.rollouts.sample_source import SampleSource
from imagereward.tuning.rollouts.times import Times


class OnlineSFTConfig(AdvantageConfig, SampledConfig):
    """The config of supervised fine-tuning on drawn images."""

    objective: Literal["sft_online"] = Field("sft_online", description="noise prediction on the best images")
    samples: Literal["best", "top", "weighted"] = Field(
        "best",
        description="which images of a group train: the best (RAFT), the `top` best, or all, weighted",
    )
    top: int = Field(4, ge=1, description='how many images of a group, for samples="top"')
    temperature: float = Field(
        1.0, gt=0, description='weights are exp(advantage / temperature), for samples="weighted"'
    )
    reference_weight: float = Field(
        0.0, ge=0, description="weight of the mean squared distance to the base model's predictions"
    )
    times: Times = Field(Times(), description="the training times of each sample in an update")

    @model_validator(mode="after")
    def _top_of_group(self):
        if self.samples == "top" and self.top >= self.group:
            raise ValueError(f"top={self.top} of group={self.group}: expected fewer than the group has")
        return self

    def make(self, job: ObjectiveContext) -> Objective:
        self.times.passes(self.steps)
        return self.add_pretraining(job, OnlineSFT(self, self.sample_source(job, "SFT on drawn images")))


class OnlineSFT(Objective):
    """L = w mean (predict(x_t, t) - target)^2 + reference_weight mean (predict(x_t, t) - reference's)^2.

    "mean" is over elements. L is averaged over the samples of groups with two different rewards that
    `samples` chooses, and over their training times; x_t is a sample's clean latents with noise of time t,
    and w is 1 or its weight.
    """

    def __init__(self, config: OnlineSFTConfig, source: SampleSource):
        self.config, self.source, self.rows = config, source, source.rows

    @property
    def snapshots(self) -> tuple[str, ...]:
        """("reference",) if there is a penalty, else none."""
        return ("reference",) if self.config.reference_weight else ()

    def minibatches(self, policy: Policy, plan: UpdatePlan) -> Iterator[list[CleanBatch]]:
        """Draw and score the update's images; a minibatch is chosen samples at one training time each."""
        grouped = self.source.plan(plan)
        config, rollout = self.config, self.source.draw(policy, grouped)
        advantages = config.advantages(rollout)
        if config.samples == "weighted":
            weights = softmax_weights(advantages, rollout.groups_N, config.temperature)
        else:
            count = 1 if config.samples == "best" else config.top
            best = top_mask(config.compared(rollout), rollout.groups_N, count)
            weights = (best & advantages.valid).float()
        self.source.count(rollout, weights > 0, plan.update)
        items = (weights > 0).nonzero()
        passes = config.times.passes(policy.dynamics.steps)
        yield from clean_batches(
            rollout, grouped, items, weights[items[:, 0]], passes=passes, parts=config.optimizer_steps
        )

    def loss(self, policy: Policy, batch: CleanBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of the class; metrics: error, without weights, and the distance that is penalised."""
        config = self.config
        noised = add_noise(policy, batch, config.times, config.seed)
        prediction = policy.predict_at(noised.x, noised.time, noised.condition)
        target = policy.dynamics.target(noised.clean, noised.noise, noised.time)
        error = mean_square(prediction - target)
        each, metrics = batch.values * error, {"error": error.detach().mean()}
        if config.reference_weight:
            away = distance_from(policy, "reference", noised, prediction)
            each = each + config.reference_weight * away
            metrics["reference_distance"] = away.detach().mean()
        return each.mean(), metrics

    def end_update(self, policy: Policy, update: int) -> dict[str, float]:
        """Metrics of the rollout, see `Rollout.metrics`; `counted` is the share of images that train."""
        return self.source.metrics

    def prompts_in(self, batch: CleanBatch) -> list[str]:
        """The minibatch's prompts."""
        return batch.prompts


def softmax_weights(advantages: Advantages, groups_N: torch.Tensor, temperature: float) -> torch.Tensor:
    """Weights float32 [N]: softmax of advantage / temperature within each group, times its number of samples.

    Only samples with an advantage count, and average to 1; others get 0. The weights of Black et al.,
    exp(reward / temperature) / Z, have one Z for all images.
    """
    weights = torch.zeros(len(advantages.valid))
    for group in groups_N[advantages.valid].unique():
        members = (advantages.valid & (groups_N == group)).nonzero().flatten()
        softmax = (advantages.advantages[members].double() / temperature).softmax(0)
        weights[members] = (softmax * len(members)).float()
    return weights
