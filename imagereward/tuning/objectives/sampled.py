"""The keys of objectives that draw groups of images, score them, and compare them within groups."""

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
from imagereward.tuning.rollouts.collect import Rollout
from imagereward.tuning.rollouts.sample_source import SampleSource
from imagereward.tuning.sampling.base import Dynamics
from imagereward.tuning.sampling.flow import Flow


class SampledConfig(GeneratorConfig):
    """The keys of objectives that draw images: an update draws `batch_size` of them, `group` for a prompt."""

    prompts: str = Field(
        description="prompts: a .txt file with one on each line; a table (.jsonl, .json, .csv, .tsv or "
        ".parquet); or a folder with originals/, masks/ and prompts/"
    )
    group: int = Field(24, ge=2, description="images drawn for each prompt and compared")
    shared_initial_noise: bool = Field(
        False,
        description="the images of a group begin from the same noise; for GRPO, whose steps have noise",
    )
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

    def check_processes(self, ranks: int, sharded: bool) -> None:
        super().check_processes(ranks, sharded)
        if self.pretraining is not None:
            self.pretraining.check_processes(self.micro_batch, ranks, sharded)

    def dynamics(self, denoiser: Denoiser) -> Dynamics:
        dynamics = super().dynamics(denoiser)
        if self.shift is None and not self.whole_times:
            return dynamics
        if not isinstance(dynamics, Flow):
            raise InputError(
                f"shift={self.shift}, whole_times={self.whole_times}: only flow models have such a grid"
            )
        return dynamics.on_grid(self.shift, self.whole_times)

    def sample_source(self, job: ObjectiveContext, objective: str) -> SampleSource:
        """Draws and scores samples as the config says.

        Raises InputError, naming `objective`, without a reward, and for one start of a group: this source
        draws without noise, so that all images of the group would be the same.
        """
        if self.shared_initial_noise:
            raise InputError(
                f"shared_initial_noise=true: {objective} draws without noise, so that a group's images would "
                "be one image; expected false, or GRPO"
            )
        return SampleSource(
            job.rows,
            job.rewards_for(objective),
            group=self.group,
            seed=self.seed,
            scoring=self.scoring,
        )

    def add_pretraining(self, job: ObjectiveContext, objective):
        """The objective, in a weighted sum with `pretraining` if the config has it."""
        return with_pretraining(self.pretraining, self, job, objective)


class ComparisonConfig(Config):
    """The keys of objectives that compare the images of a group by their rewards."""

    advantage_std: StdScope = Field(
        "batch", description="advantages are divided by the standard deviation of the batch or of the group"
    )
    advantage_std_divisor: Literal["population", "sample"] = Field(
        "population",
        description="the deviation's sum of squares is divided by the number of rewards, or by one less",
    )
    advantage_epsilon: float = Field(1e-4, gt=0, description="added to the deviation that divides advantages")
    advantages_of: Literal["sum", "each"] = Field(
        "sum",
        description="advantages are those of the rewards' weighted sum; or each reward has its own, which "
        "are added with the weights and divided by their deviation over the batch (with "
        "advantage_std=group: GDPO)",
    )

    @property
    def deviation(self) -> AdvantageStd:
        """How the standard deviation is measured."""
        return AdvantageStd(self.advantage_std, self.advantage_std_divisor, self.advantage_epsilon)

    def compared(self, rollout: Rollout) -> torch.Tensor:
        """[N] float64, NaN without a reward: the best sample of a group has the highest value.

        The rewards' weighted sum; with advantages_of="each", that of their own unclipped advantages.
        """
        by = self.deviation if self.advantages_of == "each" else None
        return weighted_sum(rollout.rewards, rollout.weights, rollout.groups_N, by)


class AdvantageConfig(ComparisonConfig):
    """The keys of objectives that learn from group-relative advantages."""

    advantage_clip: float = Field(5.0, gt=0, description="advantages are clipped to this much either way")

    def advantages(self, rollout: Rollout) -> Advantages:
        """Advantages [N] of a rollout's samples; see `group_advantages` and `advantages_of_each`."""
        groups, bound = rollout.groups_N, self.advantage_clip
        if self.advantages_of == "each":
            return advantages_of_each(rollout.rewards, rollout.weights, groups, self.deviation, bound)
        return group_advantages(rollout.total, groups, self.deviation, bound)
