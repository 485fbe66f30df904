"""KL: GRPO's penalty for the distance from the reference; which samples pay it; when the reference moves."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from imagereward.errors import InputError
from imagereward.tuning.config import Config
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.distributed import gather_objects
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.policy.refresh import Refresher, RefreshRule
from imagereward.tuning.rewards.weighted import Rewards
from imagereward.tuning.rollouts.advantages import disputed
from imagereward.tuning.rollouts.collect import Rollout
from imagereward.tuning.rollouts.minibatches import StepMinibatch


class KL(Config):
    """A penalty beta * KL for the distance of each sampling step from the reference's step.

    true       KL = mean over elements of (mean - reference mean)^2 / (2 std^2)
    published  Flow-GRPO's, dt * the true KL: its std leaves out the step's length dt. With ten steps it is
               about a tenth of the true KL, so a published beta belongs to this form
    """

    form: Literal["true", "published"] = Field(
        description="true: mean (mean - reference mean)^2 / (2 std^2); published: that times dt, as "
        "Flow-GRPO's betas expect"
    )
    beta: float = Field(gt=0, description="weight of the penalty in the loss")
    on: Literal["all", "disputed"] = Field(
        "all",
        description="samples with the penalty: all, or only those that the trained rewards place higher in "
        "the batch than the rewards of weight 0 do",
    )
    share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="with on=disputed: share of the disputed samples that have the penalty, the most "
        "disputed first",
    )
    refresh: RefreshRule | None = Field(
        None, description="when the weights that learn replace the reference; null: never"
    )


class Penalty:
    """The penalty of a training: the samples of an update that have it, and the reference's replacements.

    Raises InputError for on="disputed" with rewards of which none, or all, are watched.
    """

    def __init__(self, config: KL, rewards: Rewards):
        self.config, self.weights = config, rewards.weights
        watched = [name for name, weight in self.weights.items() if not weight]
        if config.on == "disputed" and len(watched) in (0, len(self.weights)):
            raise InputError(
                f'kl.on="disputed": {len(watched)} of {len(self.weights)} rewards have weight 0; expected at '
                'least one that is trained and one that is watched, as in reward={"PickScore-v1"=1.0, '
                '"ImageReward-v1.0"=0.0}'
            )
        self.refresher = Refresher(config.refresh) if config.refresh is not None else None
        self._first, self._ranks, self._penalised_N = 0, 1, torch.ones(0, dtype=torch.bool)
        self._sums = torch.zeros(2, dtype=torch.float64)  # of share * KL, and of share

    def begin(self, plan: UpdatePlan, rollout: Rollout) -> None:
        """Choose the samples of an update that have the penalty, by all its rewards."""
        self._first, self._ranks = plan.first, plan.ranks
        self._sums = torch.zeros(2, dtype=torch.float64)
        self._penalised_N = torch.ones(plan.batch_size, dtype=torch.bool)
        if self.config.on == "disputed":
            watched = [rollout.rewards[name] for name, weight in self.weights.items() if not weight]
            self._penalised_N = disputed(rollout.total, watched, self.config.share)

    def term(self, kl_B: torch.Tensor, dt_B: torch.Tensor, batch: StepMinibatch) -> torch.Tensor:
        """What the penalty adds to the loss of each of a minibatch's samples, [B].

        kl_B  KL of the samples' steps from the reference's, in the form "true"
        dt_B  the steps' lengths
        """
        counted = torch.where(batch.valid, kl_B.detach(), 0.0).sum() / batch.valid.sum().clamp(min=1)
        self._sums += batch.share * torch.tensor([float(counted), 1.0], dtype=torch.float64)
        places = [number - self._first for number in batch.trajectories.chunk.samples]
        penalised_B = self._penalised_N[places].to(kl_B.device)
        away = kl_B * dt_B if self.config.form == "published" else kl_B
        return self.config.beta * torch.where(penalised_B, away, 0.0)

    def end_update(self, policy: Policy) -> dict[str, float]:
        """Replace the reference if it is due; metrics. All processes must call this.

        `penalised` is the share of samples with the penalty, 0..1, for on="disputed"; `refreshed` is 1 if the
        reference was replaced, else 0, for a config with a rule.
        """
        metrics = {}
        if self.config.on == "disputed":
            metrics["penalised"] = float(self._penalised_N.float().mean())
        if self.refresher is not None:
            away, share = map(sum, zip(*gather_objects(self._sums.tolist(), self._ranks), strict=True))
            metrics["refreshed"] = float(self.refresher.after_update(policy, away / share if share else None))
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The refresher's state; empty without one."""
        return self.refresher.state_dict() if self.refresher is not None else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""
        if self.refresher is not None:
            self.refresher.load_state_dict(state)
