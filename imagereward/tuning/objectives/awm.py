"""AWM: policy gradient whose log-probability is the weighted error of noise prediction.

Advantage-weighted matching, Xue et al. 2025, arXiv:2509.25050. It needs no noise in sampling and no stored
steps.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field

from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.objectives.base import Objective
from imagereward.tuning.objectives.clipping import clipped_loss
from imagereward.tuning.objectives.config import ObjectiveContext
from imagereward.tuning.objectives.sampled import AdvantageConfig, SampledConfig
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.rollouts.clean import (
    CleanBatch,
    Noised,
    add_noise,
    clean_batches,
    distance_from,
    mean_square,
)
from imagereward.tuning.rollouts.sample_source import SampleSource
from imagereward.tuning.rollouts.times import Times

Weighting = Literal["uniform", "time", "time_squared", "ghuber"]
HUBER_EPSILON = 1e-10


class AWMConfig(AdvantageConfig, SampledConfig):
    """The config of advantage-weighted matching."""

    objective: Literal["awm"] = Field("awm", description="policy gradient by errors of noise prediction")
    weighting: Weighting = Field(
        "ghuber", description="log p of an error l at noise t: -l, -t l, -t^2 l, or -t/power (l^power)"
    )
    power: float = Field(0.25, gt=0, le=1, description='power of the error, for weighting="ghuber"')
    clip_ratio: float = Field(
        1.0,
        gt=0,
        description="a probability ratio has no gradient once it is further than this from 1 in the "
        "direction of its advantage",
    )
    advantage_scale: float = Field(
        0.2, gt=0, description="clipped advantages are multiplied by it; published: 1 / advantage_clip"
    )
    reference_weight: float = Field(
        0.001, ge=0, description="weight of the mean squared distance to the base model's predictions"
    )
    average_weight: float = Field(
        1.0, ge=0, description="weight of the distance to the predictions of a quick average of the weights"
    )
    average_decay: float = Field(
        0.3, ge=0, lt=1, description="decay of the quick average of the weights in each update"
    )
    average_rate: float | None = Field(
        None,
        gt=0,
        description="the average's decay rises from 0 by this much with each step of the optimizer, up to "
        "average_decay; null: average_decay from the first update",
    )
    times: Times = Field(
        Times(draw="grid", count=6, first=1), description="the training times of each sample in an update"
    )

    def decay_after(self, steps: int) -> float:
        """The decay of the quick average after so many steps of the optimizer."""
        rate = self.average_rate
        return self.average_decay if rate is None else min(self.average_decay, rate * steps)

    def make(self, job: ObjectiveContext) -> Objective:
        self.times.passes(self.steps)
        return self.add_pretraining(job, AWM(self, self.sample_source(job, "AWM")))


class AWM(Objective):
    """PPO's clipped loss with a log-probability that is an error of noise prediction.

    With the error l = mean (p - target)^2 of the prediction p at a noised sample, at noise t in 0..1:
        log p = -l, -t l, -t^2 l, or -t / power ((l + 1e-10)^power - 1e-10^power)
        ratio = exp(log p - log p_rollout), at the same t and noise, under the weights that drew the sample
        L = max(-A ratio, -A clip(ratio, 1 - clip_ratio, 1 + clip_ratio))
            + reference_weight mean (p - p_base)^2 + average_weight mean (p - p_average)^2
    with A = advantage_scale * the clipped advantage of `group_advantages`, averaged over the samples of
    groups with two different rewards, and over their training times. With one step of the optimizer in an
    update, the ratio is exactly 1, and its gradient that of log p.
    """

    def __init__(self, config: AWMConfig, source: SampleSource):
        self.config, self.source, self.rows = config, source, source.rows

    @property
    def snapshots(self) -> list[str]:
        """Those that the config's penalties need; "old" if an update has several steps of the optimizer."""
        config = self.config
        needed = {
            "old": config.optimizer_steps > 1,
            "reference": config.reference_weight > 0,
            "average": config.average_weight > 0,
        }
        return [name for name, wanted in needed.items() if wanted]

    def minibatches(self, policy: Policy, plan: UpdatePlan) -> Iterator[list[CleanBatch]]:
        """Draw and score the update's images; a minibatch is samples at one training time each."""
        grouped = self.source.plan(plan)
        config, rollout = self.config, self.source.draw(policy, grouped)
        advantages = config.advantages(rollout)
        self.source.count(rollout, advantages.valid, plan.update)
        items = advantages.valid.nonzero()
        values = advantages.advantages[items[:, 0]] * config.advantage_scale
        passes = config.times.passes(policy.dynamics.steps)
        yield from clean_batches(rollout, grouped, items, values, passes=passes, parts=config.optimizer_steps)

    def loss(self, policy: Policy, batch: CleanBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of the class; metrics: ratio, clipped, and the distances that are penalised."""
        config = self.config
        noised = add_noise(policy, batch, config.times, config.seed)
        prediction = policy.predict_at(noised.x, noised.time, noised.condition)
        logp = self._logp(policy, noised, prediction)
        before = logp.detach()
        if "old" in self.snapshots:
            with policy.using("old"):
                drawn_by = policy.predict_at(noised.x, noised.time, noised.condition)
                before = self._logp(policy, noised, drawn_by)
        ratio = (logp - before).exp()
        each = clipped_loss(ratio, batch.values, config.clip_ratio)
        clipped = (ratio - 1) * batch.values.sign() > config.clip_ratio
        metrics = {"ratio": ratio, "clipped": clipped.float()}
        for name, weight in (("reference", config.reference_weight), ("average", config.average_weight)):
            if weight:
                away = distance_from(policy, name, noised, prediction)
                each = each + weight * away
                metrics[f"{name}_distance"] = away
        return each.mean(), {name: values.detach().mean() for name, values in metrics.items()}

    def end_update(self, policy: Policy, update: int) -> dict[str, float]:
        """Moves the average, and the weights that draw; metrics of the rollout, see `Rollout.metrics`."""
        average = self.config.decay_after((update + 1) * self.config.optimizer_steps)
        for name, decay in (("old", 0.0), ("average", average)):
            if name in self.snapshots:
                policy.snapshots[name].update(policy.denoiser.network, decay)
        return self.source.metrics

    def prompts_in(self, batch: CleanBatch) -> list[str]:
        """The minibatch's prompts."""
        return batch.prompts

    def _logp(self, policy: Policy, noised: Noised, prediction: torch.Tensor) -> torch.Tensor:
        target = policy.dynamics.target(noised.clean, noised.noise, noised.time)
        noise_B = policy.dynamics.share_of(noised.time)
        return matching_logp(
            mean_square(prediction - target), noise_B, self.config.weighting, self.config.power
        )


def matching_logp(
    error_B: torch.Tensor, noise_B: torch.Tensor, weighting: Weighting, power: float = 0.25
) -> torch.Tensor:
    """log p [B] of samples by the mean squared errors l of their predictions at noise t in 0..1.

    uniform -l; time -t l; time_squared -t^2 l; ghuber -t / power ((l + 1e-10)^power - 1e-10^power)

    The public code, scxue/advantage_weighted_matching, compute_log_prob_awm.
    """
    if weighting == "ghuber":
        return -noise_B / power * ((error_B + HUBER_EPSILON) ** power - HUBER_EPSILON**power)
    return -error_B * noise_B ** {"uniform": 0, "time": 1, "time_squared": 2}[weighting]
