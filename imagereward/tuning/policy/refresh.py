"""RefreshRule: when the reference is replaced by the learner; Refresher: applies it, and counts updates."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from imagereward.tuning.config import Config
from imagereward.tuning.policy.policy import Policy


class RefreshRule(Config):
    """After which updates the reference becomes a copy of the weights that learn. At least one key is needed.

    A distance penalty to the first weights pulls back everything learned. With a reference that is replaced,
    the penalty limits only how far the weights move between two replacements. He et al. 2025,
    arXiv:2512.24138 (GARDO).
    """

    every: int | None = Field(
        None, ge=1, description="replace the reference so many updates after it was replaced last"
    )
    kl_above: float | None = Field(
        None,
        gt=0,
        description="replace the reference after an update whose mean KL from it (`kl` in the log) was above "
        "this",
    )

    @model_validator(mode="after")
    def _some(self):
        if self.every is None and self.kl_above is None:
            raise ValueError("refresh without every and kl_above: the reference would never be replaced")
        return self

    def due(self, updates: int, kl: float | None) -> bool:
        """Whether the reference is replaced now.

        updates  finished since it was replaced last, or since the start of training
        kl       mean KL of the last update from the reference; None: nothing was learned in it
        """
        late = self.every is not None and updates >= self.every
        return late or (self.kl_above is not None and kl is not None and kl > self.kl_above)


class Refresher:
    """Replaces a snapshot by the weights that learn, by a rule; its count is kept in checkpoints.

    snapshot  the snapshot's name
    """

    def __init__(self, rule: RefreshRule, snapshot: str = "reference"):
        self.rule, self.snapshot = rule, snapshot
        self.updates = 0  # since the snapshot was replaced last

    def after_update(self, policy: Policy, kl: float | None = None) -> bool:
        """Whether the snapshot was replaced, after one more update.

        kl  as in `RefreshRule.due`. It must be equal in all processes, all of which must call this
        """
        self.updates += 1
        if not self.rule.due(self.updates, kl):
            return False
        policy.snapshots[self.snapshot].update(policy.denoiser.network)
        self.updates = 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """The count, for checkpoints, which hold the snapshot itself with the others."""
        return {"updates_since_refresh": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the count of a `state_dict`."""
        self.updates = int(state["updates_since_refresh"])
