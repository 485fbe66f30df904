"""DiffusionNFT: learns from drawn images by noise prediction, towards good ones and away from bad ones.

Zheng et al. 2025, arXiv:2509.16117. It needs no noise in sampling, no stored steps and no gradient of the
reward.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field

from imagereward.tuning.config import Config
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.objectives.base import Objective
from imagereward.tuning.objectives.config import ObjectiveContext
from imagereward.tuning.objectives.sampled import AdvantageConfig, SampledConfig
from imagereward.tuning.policy.distilled import warn_of_distilled
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.rollouts.clean import CleanBatch, add_noise, clean_batches, distance_from, mean_square
from imagereward.tuning.rollouts.sample_source import SampleSource
from imagereward.tuning.rollouts.times import Times

Choice = Literal["all", "positive", "negative", "one", "binary"]


class OldPolicy(Config):
    """The decay of the old policy: after n steps of the optimizer, min(rate * max(0, n - start), highest).

    The old policy draws the images. After each update, old = decay * old + (1 - decay) * learner.
    """

    start: int = Field(0, ge=0, description="steps of the optimizer in which the decay is 0")
    rate: float = Field(0.001, ge=0, description="increase of the decay with each further step")
    highest: float = Field(0.5, ge=0, lt=1, description="largest decay")

    def decay(self, steps: int) -> float:
        """The decay after so many steps of the optimizer."""
        return min(self.rate * max(0, steps - self.start), self.highest)


class NFTConfig(AdvantageConfig, SampledConfig):
    """The config of DiffusionNFT."""

    objective: Literal["nft"] = Field(
        "nft", description="noise prediction towards good images, from bad ones"
    )
    beta: float = Field(
        1.0, gt=0, description="distance of the implicit policies from the old one; 0.1 for several rewards"
    )
    choice: Choice = Field(
        "all",
        description="which advantages count: all, positive or negative ones (others become 0), one (1 for "
        "positive ones, else 0), or binary (their signs)",
    )
    old: OldPolicy = Field(OldPolicy(), description="how the policy that draws follows the learner")
    reference_weight: float = Field(
        1e-4, ge=0, description="weight of the mean squared distance to the base model's predictions"
    )
    times: Times = Field(
        Times(draw="grid", count=0), description="the training times of each sample in an update"
    )

    def make(self, job: ObjectiveContext) -> Objective:
        self.times.passes(self.steps)
        warn_of_distilled(job.denoiser, "nft")
        return self.add_pretraining(job, NFT(self, self.sample_source(job, "NFT")))


class NFT(Objective):
    """Contrasts two implicit policies on noised samples of the old policy, weighted by optimality r.

    With the network's prediction p and the old policy's p_old at x_t:
        p+ = beta p + (1 - beta) p_old, p- = (1 + beta) p_old - beta p, each implies clean latents x0+, x0-
        L+- = mean (x0+- - x0)^2 / stopgrad(max(mean |x0+- - x0|, 1e-5))
        r = clip(A / advantage_clip / 2 + 1/2, 0, 1)
        L = advantage_clip (r L+ + (1 - r) L-) / beta + reference_weight mean (p - p_base)^2
    averaged over the samples of groups with two different rewards, and over their training times.
    """

    def __init__(self, config: NFTConfig, source: SampleSource):
        self.config, self.source, self.rows = config, source, source.rows

    @property
    def snapshots(self) -> tuple[str, ...]:
        """("old",), and "reference" if there is a penalty."""
        return ("old", "reference") if self.config.reference_weight else ("old",)

    def minibatches(self, policy: Policy, plan: UpdatePlan) -> Iterator[list[CleanBatch]]:
        """Draw and score the update's images; a minibatch is samples at one training time each."""
        grouped = self.source.plan(plan)
        rollout = self.source.draw(policy, grouped, "old")
        config = self.config
        advantages = config.advantages(rollout)
        self.source.count(rollout, advantages.valid, plan.update)
        items = advantages.valid.nonzero()
        optimality = optimality_of(advantages.advantages, config.choice, config.advantage_clip)
        passes = config.times.passes(policy.dynamics.steps)
        yield from clean_batches(
            rollout, grouped, items, optimality[items[:, 0]], passes=passes, parts=config.optimizer_steps
        )

    def loss(self, policy: Policy, batch: CleanBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of the class; metrics: distance to the old policy, and to the base if it is penalised."""
        config, dynamics = self.config, policy.dynamics
        noised = add_noise(policy, batch, config.times, config.seed)
        prediction = policy.predict_at(noised.x, noised.time, noised.condition)
        with policy.using("old"):
            old = policy.predict_at(noised.x, noised.time, noised.condition)
        better, worse = implicit_policies(prediction, old, config.beta)
        better, worse = (dynamics.x0_at(noised.x, each, noised.time) for each in (better, worse))
        each = nft_loss(better, worse, noised.clean, batch.values, config.beta, config.advantage_clip)
        metrics = {"old_distance": mean_square(prediction - old).detach().mean()}
        if config.reference_weight:
            away = distance_from(policy, "reference", noised, prediction)
            each = each + config.reference_weight * away
            metrics["reference_distance"] = away.detach().mean()
        return each.mean(), metrics

    def end_update(self, policy: Policy, update: int) -> dict[str, float]:
        """Moves the old policy; metrics of the rollout, see `Rollout.metrics`, and the decay."""
        decay = self.config.old.decay((update + 1) * self.config.optimizer_steps)
        policy.snapshots["old"].update(policy.denoiser.network, decay)
        return {**self.source.metrics, "old_decay": decay}

    def prompts_in(self, batch: CleanBatch) -> list[str]:
        """The minibatch's prompts."""
        return batch.prompts


def optimality_of(advantages_N: torch.Tensor, choice: Choice, bound: float) -> torch.Tensor:
    """r = clip(A / bound / 2 + 1/2, 0, 1), [N], of advantages A; `choice` changes A first.

    all       A clipped to -bound..bound
    positive  A clipped to 0..bound, so that r is at least 1/2
    negative  A clipped to -bound..0
    one       1 where A > 0, else 0
    binary    the sign of A

    The variants of the public code, NVlabs/DiffusionNFT, adv_mode.
    """
    changed = {
        "all": advantages_N.clamp(-bound, bound),
        "positive": advantages_N.clamp(0, bound),
        "negative": advantages_N.clamp(-bound, 0),
        "one": (advantages_N > 0).to(advantages_N.dtype),
        "binary": advantages_N.sign(),
    }[choice]
    return (changed / bound / 2 + 0.5).clamp(0, 1)


def implicit_policies(
    prediction: torch.Tensor, old: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(p+, p-) = (beta p + (1 - beta) p_old, (1 + beta) p_old - beta p), each [B, ...]."""
    return beta * prediction + (1 - beta) * old, (1 + beta) * old - beta * prediction


def nft_loss(
    better: torch.Tensor,
    worse: torch.Tensor,
    clean: torch.Tensor,
    optimality_B: torch.Tensor,
    beta: float,
    advantage_max: float,
) -> torch.Tensor:
    """advantage_max (r L+ + (1 - r) L-) / beta, [B]; the symbols are those of `NFT`.

    better, worse  x0+ and x0-, the clean latents that p+ and p- imply, [B, ...]
    clean          x0 [B, ...]
    optimality_B   r in 0..1
    """

    def error(x0: torch.Tensor) -> torch.Tensor:
        scale = (x0 - clean).detach().abs().flatten(1).mean(1).clamp(min=1e-5)
        return mean_square(x0 - clean) / scale

    return advantage_max * (optimality_B * error(better) + (1 - optimality_B) * error(worse)) / beta
