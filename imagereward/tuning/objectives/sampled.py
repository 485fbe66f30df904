"""SampledConfig, AdvantageConfig: the keys of objectives that draw groups of images and score them."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator

from imagereward.errors import InputError
from imagereward.tuning.config import Config
from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.objectives.config import GeneratorConfig, ObjectiveContext
from imagereward.tuning.objectives.sft import Pretraining, with_pretraining
from imagereward.tuning.rollouts.advantages import (
    Advantages,
    AdvantageStd,
    StdScope,
    advantages_of_each,
    group_advantages,
    weighted_sum,
)
from imagereward.tuning.rollouts.sample_source import SampleSource
from imagereward.tuning.sampling.base import Dynamics
from imagereward.tuning.sampling.flow import Flow


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

    def source(self, job: ObjectiveContext, objective: str) -> SampleSource:
        """Draws and scores samples as the config says; InputError naming `objective` without a reward."""
        return SampleSource(
            job.rows,
            job.rewards_for(objective),
            group=self.group,
            seed=self.seed,
            scoring=self.scoring,
            shared_initial_noise=self.shared_initial_noise,
        )

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
    advantages_of: Literal["sum", "each"] = Field(
        "sum",
        description="advantages are those of the rewards' weighted sum; or each reward has its own, which "
        "are added with the weights and divided by their deviation over the batch (with "
        "advantage_std=group: GDPO)",
    )

    def advantages(
        self, rewards: Mapping[str, torch.Tensor], weights: Mapping[str, float], groups_N: torch.Tensor
    ) -> Advantages:
        """Advantages [N] of rewards [N] by name; see `group_advantages` and `advantages_of_each`."""
        by = AdvantageStd(self.advantage_std, self.advantage_std_divisor, self.advantage_epsilon)
        if self.advantages_of == "each":
            return advantages_of_each(rewards, weights, groups_N, by, self.advantage_clip)
        return group_advantages(weighted_sum(rewards, weights, groups_N), groups_N, by, self.advantage_clip)
