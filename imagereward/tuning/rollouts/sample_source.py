"""SampleSource: draws the clean samples of an update and scores them."""

import logging
from collections.abc import Sequence

import torch

from imagereward.errors import InputError
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.requests import Row, prompts_of
from imagereward.tuning.policy.policy import CURRENT, Policy
from imagereward.tuning.rewards.scoring import ScoringConfig
from imagereward.tuning.rewards.weighted import Rewards
from imagereward.tuning.rollouts.collect import Rollout, collect

log = logging.getLogger(__name__)


class SampleSource:
    """Draws the clean samples of an update by deterministic steps, scores them, and counts.

    rows     all rows of the training data
    rewards  score the images
    group    samples for each row
    seed     decides, with the sample's number, about rows and noise
    scoring  how rewards are computed and retried; default: `ScoringConfig()`

    `metrics` are those of the last draw; see `Rollout.metrics`.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        rewards: Rewards,
        *,
        group: int,
        seed: int = 0,
        scoring: ScoringConfig | None = None,
    ):
        self.rows, self.rewards, self.group, self.seed = rows, rewards, group, seed
        self.scoring = scoring
        self.metrics: dict[str, float] = {}

    @property
    def prompts(self) -> list[str]:
        """The prompts of all rows."""
        return prompts_of(self.rows)

    def plan(self, plan: UpdatePlan, whole_groups: bool = False) -> UpdatePlan:
        """The plan in groups. Raises InputError, in every process alike, if one would have no samples.

        whole_groups  all samples of a group go to one process, as some rewards need too
        """
        return plan_in_groups(plan, self.group, self.rewards, whole_groups)

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
            seed=self.seed,
            scoring=self.scoring,
            sampler=sampler,
        )

    def count(self, rollout: Rollout, learned_N: torch.Tensor, update: int) -> None:
        """Set `metrics`, and warn if no sample is learned from."""
        self.metrics = rollout.metrics(self.rewards, learned_N)
        warn_of_nothing(learned_N, update)


def plan_in_groups(plan: UpdatePlan, group: int, rewards: Rewards, whole_groups: bool = False) -> UpdatePlan:
    """The plan with `group` samples in a group, whole groups on a process where `rewards` need them.

    Raises InputError, in every process alike, if a process would have no samples.
    """
    plan = plan.in_groups(group, whole_groups or bool(rewards.of_groups))
    if (owners := len(set(plan.owners))) < plan.ranks:
        whole = " (whole groups to each)" if plan.whole_groups else ""
        raise InputError(
            f"batch_size={plan.batch_size}, micro_batch={plan.micro_batch}, group={group}: only {owners} of "
            f"{plan.ranks} processes would draw samples{whole}; expected a larger batch_size, or a smaller "
            "group or micro_batch"
        )
    return plan


def warn_of_nothing(learned_N: torch.Tensor, update: int) -> None:
    """Log a warning if no sample of update `update`, from 0, has a reward to learn from."""
    if not learned_N.any():
        log.warning("update %d: no group has two different rewards; nothing is learned", update + 1)
