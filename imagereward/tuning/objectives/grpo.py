"""GRPO: policy gradient with advantages within groups of images; any reward, differentiable or not.

Shao et al. 2024, arXiv:2402.03300; on flow models: Liu et al. 2025, arXiv:2505.05470 (Flow-GRPO) and
Xue et al. 2025, arXiv:2505.07818 (DanceGRPO); on DDIM, as in DDPO: Black et al. 2023, arXiv:2305.13301. A
window of one step is S1; a window of a few steps is Flow-GRPO-Fast and MixGRPO (Li et al. 2025,
arXiv:2507.21802).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from imagereward.precision import DTYPES
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.requests import Row, prompts_of
from imagereward.tuning.objectives.base import Objective
from imagereward.tuning.objectives.clipping import centred_log_ratio, clipped_loss, masked_loss
from imagereward.tuning.objectives.config import ObjectiveContext, Precision
from imagereward.tuning.objectives.penalty import KL, Penalty
from imagereward.tuning.objectives.sampled import AdvantageConfig, SampledConfig
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.rewards.weighted import Rewards
from imagereward.tuning.rollouts.collect import collect
from imagereward.tuning.rollouts.minibatches import StepMinibatch, make_minibatches
from imagereward.tuning.rollouts.sample_source import plan_in_groups, warn_of_nothing
from imagereward.tuning.rollouts.trajectories import (
    check_noise,
    rows_for_groups,
)
from imagereward.tuning.rollouts.window import Window
from imagereward.tuning.sampling.base import Dynamics, Noise, kl_divergence


class GRPOConfig(AdvantageConfig, SampledConfig):
    """Fine-tuning by any reward; an update draws `batch_size` images, `group` for a prompt."""

    objective: Literal["grpo"] = Field("grpo", description="policy gradient within groups of images")
    noise: Noise = Field(description="the noise that a sampling step adds")
    window: Window = Field(Window(), description="the sampling steps that have noise and are trained")
    clip_ratio: float = Field(
        1e-4,
        gt=0,
        description="a probability ratio has no gradient once it is further than this from 1 in the "
        "direction of its advantage",
    )
    divergence_bound: float | None = Field(
        None,
        gt=0,
        description="instead of clipping ratios, ignore a step whose KL from the drawn step is at least "
        "this, if its ratio has already moved in the direction of its advantage; Flow-DPPO: 1e-5",
    )
    guard: bool = Field(False, description="ratios centred and of one scale at all steps (GRPO-Guard)")
    kl: KL | None = Field(None, description="penalty for moving away from the base model; null: none")
    storage: Precision = Field("float32", description="number format of the stored latents")

    @model_validator(mode="after")
    def _one_rule(self):
        if self.guard and self.divergence_bound is not None:
            raise ValueError(
                "guard centres ratios for clipping, which divergence_bound replaces; one of them"
            )
        return self

    @property
    def storage_dtype(self) -> torch.dtype | None:
        """The number format that stored latents are rounded to; None: they are not rounded."""
        return None if self.storage == "float32" else DTYPES[self.storage]

    def make(self, job: ObjectiveContext) -> Objective:
        dynamics = self.dynamics(job.denoiser)
        noisy = dynamics.with_noise(self.noise, self.storage_dtype)
        check_noise(noisy, self.window.bounds(self.steps))
        return self.add_pretraining(job, GRPO(self, job.rows, job.rewards_for("GRPO")))


class GRPO(Objective):
    """Draws groups of images of one prompt, and makes the steps of images with higher rewards more probable.

    The loss of a sample at a step is
        L = -min(r A, clip(r, 1 - clip_ratio, 1 + clip_ratio) A) + beta * KL(step || reference's step)
    (`clipped_loss`; with `divergence_bound` the first term is `masked_loss`; KL and beta: `Penalty`)
    with the probability ratio r = p_new(step) / p_old(step), where p_old is from when the step was drawn and
    both are geometric means over elements, and the image's advantage A (see `group_advantages`). With
    `guard`, r is exp of the `centred_log_ratio`, and the first term is divided by the step's length dt
    (GRPO-Guard).
    """

    def __init__(self, config: GRPOConfig, rows: Sequence[Row], rewards: Rewards):
        self.config, self.rows, self.rewards = config, rows, rewards
        self.penalty = None if config.kl is None else Penalty(config.kl, rewards)
        self._update_metrics: dict[str, float] = {}

    @property
    def snapshots(self) -> tuple[str, ...]:
        """("reference",) if the config has a KL penalty, else none."""
        return ("reference",) if self.penalty is not None else ()

    def minibatches(self, policy: Policy, plan: UpdatePlan) -> Iterator[list[StepMinibatch]]:
        """Draw and score the update's images; a minibatch is one step of one chunk's samples.

        All processes must call this. Raises RewardError if a reward failed for every image, InputError if a
        process would draw none.
        """
        plan = plan_in_groups(plan, self.config.group, self.rewards)
        rollout = collect(
            policy,
            plan,
            self.rows,
            self.rewards,
            window=self.config.window,
            dynamics=self.noisy(policy),
            seed=self.config.seed,
            scoring=self.config.scoring,
            shared_initial_noise=self.config.shared_initial_noise,
            keep_means=self.config.guard or self.config.divergence_bound is not None,
        )
        advantages = self.config.advantages(rollout)
        self._update_metrics = rollout.metrics(self.rewards, advantages.valid)
        warn_of_nothing(advantages.valid, plan.update)
        if self.penalty is not None:
            self.penalty.begin(plan, rollout)
        yield from make_minibatches(
            [chunk.trajectories for chunk in rollout.chunks if chunk.trajectories is not None],
            plan,
            *advantages,
            parts=self.config.optimizer_steps,
        )

    def noisy(self, policy: Policy) -> Dynamics:
        """The policy's sampling grid with the noise that steps in the window have."""
        return policy.dynamics.with_noise(self.config.noise, self.config.storage_dtype)

    def loss(self, policy: Policy, batch: StepMinibatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of the class, averaged over the samples with an advantage; metrics: ratio, clipped, kl."""
        config = self.config
        noisy, at, kept = self.noisy(policy), batch.step_index, batch.trajectories
        x = batch.before
        step = noisy.step(x, policy.predict(x, at, kept.condition), at, next=batch.after)
        assert step.logp is not None  # `check_noise` looked at every step of the window
        log_ratio = step.logp - kept.logps[:, batch.window_step]
        if config.guard:
            log_ratio = centred_log_ratio(log_ratio, step, kept.means[:, batch.window_step])  # type: ignore[index]
        ratio = log_ratio.exp()
        if config.divergence_bound is not None:
            moved = kl_divergence(step.mean, kept.means[:, batch.window_step], step.std)  # type: ignore[index]
            each, clipped = masked_loss(ratio, batch.advantages, moved, config.divergence_bound)
        else:
            each = clipped_loss(ratio, batch.advantages, config.clip_ratio)
            clipped = (ratio - 1) * batch.advantages.sign() > config.clip_ratio
        if config.guard:
            each = each / step.dt.flatten()
        seen = {"ratio": ratio, "clipped": clipped.float()}
        if self.penalty is not None:
            with policy.using("reference"):
                base = noisy.step(x, policy.predict(x, at, kept.condition), at, next=batch.after)
            seen["kl"] = kl_divergence(step.mean, base.mean, step.std)
            each = each + self.penalty.term(seen["kl"], step.dt.flatten(), batch)

        def mean(values_B):
            return torch.where(batch.valid, values_B, 0.0).sum() / batch.valid.sum().clamp(min=1)

        return mean(each), {name: mean(values.detach()) for name, values in seen.items()}

    def end_update(self, policy: Policy, update: int) -> dict[str, float]:
        """Metrics of the rollout (`Rollout.metrics`), and of the penalty (`Penalty.end_update`)."""
        more = {} if self.penalty is None else self.penalty.end_update(policy)
        return self._update_metrics | more

    def state_dict(self) -> dict[str, Any]:
        """The state of the penalty, for checkpoints; empty without one that has a state."""
        return {} if self.penalty is None else self.penalty.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""
        if self.penalty is not None:
            self.penalty.load_state_dict(state)

    def prompts_in(self, batch: StepMinibatch) -> list[str]:
        """The minibatch's prompts."""
        places = self._places(batch.trajectories.chunk.samples)
        return list(dict.fromkeys(prompts_of([self.rows[place] for place in places])))

    def _places(self, samples: Sequence[int]) -> list[int]:
        """The index of each sample's row."""
        return rows_for_groups(
            samples, self.config.group, self.config.batch_size, len(self.rows), self.config.seed
        )
