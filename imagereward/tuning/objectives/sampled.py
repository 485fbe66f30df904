"""SampledConfig, SampleSource: the groups of images that objectives draw from the generator and score."""

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator

from imagereward.errors import InputError
from imagereward.tuning.config import Config
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.requests import Row, prompts_of
from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.objectives.config import GeneratorConfig, ObjectiveContext
from imagereward.tuning.objectives.sft import Pretraining, with_pretraining
from imagereward.tuning.policy.policy import CURRENT, Policy
from imagereward.tuning.rewards.weighted import Rewards
from imagereward.tuning.rollouts.advantages import (
    Advantages,
    AdvantageStd,
    StdScope,
    group_advantages,
    weighted_sum,
)
from imagereward.tuning.rollouts.collect import Rollout, collect
from imagereward.tuning.sampling.base import Dynamics
from imagereward.tuning.sampling.flow import Flow

log = logging.getLogger(__name__)


class SampledConfig(GeneratorConfig):
    """The keys of objectives that draw images: an update draws `batch_size` of them, `group` for a prompt."""

    prompts: str = Field(description="file of prompts: .json, .jsonl, or text with one a line")
    group: int = Field(24, ge=2, description="images drawn for each prompt and compared")
    shared_initial_noise: bool = Field(False, description="the images of a group begin from the same noise")
    shift: float | None = Field(
        None,
        gt=0,
        description="flow models: the sampling grid is shift t / (1 + (shift - 1) t) for even t; default: "
        "the pipeline's own grid, by which evaluation always draws",
    )
    whole_times: bool = Field(
        False, description="flow models: the network's times, of 0..1000, are rounded down, as in DanceGRPO"
    )
    optimizer_steps: int = Field(
        1, ge=1, description="steps of the optimizer in an update, each on its part of the images"
    )
    pretraining: Pretraining | None = Field(
        None, description="noise-prediction loss on (prompt, image) pairs beside this objective; null: none"
    )

    @model_validator(mode="after")
    def _whole_groups(self):
        if self.batch_size % self.group:
            raise ValueError(f"group={self.group} does not divide batch_size={self.batch_size}")
        if self.lora is not None and self.lora.dropout:
            raise ValueError("lora.dropout: images are drawn without it, so training is too; expected 0")
        parts = -(-self.batch_size // self.micro_batch)
        if self.optimizer_steps > parts:
            raise ValueError(f"optimizer_steps={self.optimizer_steps}: an update has {parts} micro-batches")
        return self

    def dynamics(self, denoiser: Denoiser) -> Dynamics:
        dynamics = super().dynamics(denoiser)
        if self.shift is None and not self.whole_times:
            return dynamics
        if not isinstance(dynamics, Flow):
            raise InputError(
                f"shift={self.shift}, whole_times={self.whole_times}: only flow models have such a grid"
            )
        return dynamics.on_grid(self.shift, self.whole_times)

    def beside(self, job: ObjectiveContext, objective):
        """The objective, in a weighted sum with `pretraining` if the config has it."""
        return with_pretraining(self.pretraining, self, job, objective)


class AdvantageConfig(Config):
    """The keys of objectives that learn from group-relative advantages."""

    advantage_std: StdScope = Field(
        "batch", description="advantages are divided by the standard deviation of the batch or of the group"
    )
    advantage_std_divisor: Literal["population", "sample"] = Field(
        "population", description="its sum of squares is divided by the number of rewards, or by one less"
    )
    advantage_epsilon: float = Field(1e-4, gt=0, description="added to the deviation")
    advantage_clip: float = Field(5.0, gt=0, description="advantages are clipped to this much either way")
    normalize_rewards: bool = Field(False, description="standardise each reward before they are added up")

    def advantages(
        self, rewards: Mapping[str, torch.Tensor], weights: Mapping[str, float], groups_N: torch.Tensor
    ) -> Advantages:
        """Advantages [N] of the weighted sum of rewards [N] by name; see `group_advantages`."""
        deviation = AdvantageStd(self.advantage_std, self.advantage_std_divisor, self.advantage_epsilon)
        normalize_by = deviation if self.normalize_rewards else None
        total = weighted_sum(rewards, weights, groups_N, normalize_by)
        return group_advantages(total, groups_N, deviation, self.advantage_clip)


class SampleSource:
    """Draws the clean samples of an update without noise in the steps, scores them, and counts.

    config   its group, seed, scoring and shared_initial_noise
    rows     all rows of the training data
    rewards  score the images

    `metrics` are those of the last draw; see `Rollout.metrics`.
    """

    def __init__(self, config: SampledConfig, rows: Sequence[Row], rewards: Rewards):
        self.config, self.rows, self.rewards = config, rows, rewards
        self.metrics: dict[str, float] = {}

    @property
    def prompts(self) -> list[str]:
        """The prompts of all rows."""
        return prompts_of(self.rows)

    def plan(self, plan: UpdatePlan, whole_groups: bool = False) -> UpdatePlan | None:
        """The plan in groups; None, in every process alike, if a process would have no samples."""
        plan = plan.in_groups(self.config.group, whole_groups)
        return plan if len(set(plan.owners)) == plan.ranks else None

    def draw(self, policy: Policy, plan: UpdatePlan, sampler: str = CURRENT) -> Rollout:
        """The samples of the update with their rewards, drawn with the weights that `sampler` names.

        All processes must call this. Raises RewardError if a reward failed for every image.
        """
        return collect(
            policy,
            plan,
            self.rows,
            self.rewards,
            window=None,
            dynamics=policy.dynamics.without_noise(),
            seed=self.config.seed,
            scoring=self.config.scoring,
            shared_initial_noise=self.config.shared_initial_noise,
            sampler=sampler,
        )

    def count(self, rollout: Rollout, learned_N: torch.Tensor, update: int) -> None:
        """Set `metrics`, and warn if no sample is learned from."""
        self.metrics = rollout.metrics(self.rewards, learned_N)
        warn_of_nothing(learned_N, update)


def warn_of_nothing(learned_N: torch.Tensor, update: int) -> None:
    """Log a warning if no sample of update `update`, from 0, has a reward to learn from."""
    if not learned_N.any():
        log.warning("update %d: no group has two different rewards; nothing is learned", update + 1)
