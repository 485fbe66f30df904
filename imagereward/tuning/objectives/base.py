"""The interface of an objective: minibatches(), loss(), numbers()."""

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch

from imagereward.tuning.data.plan import UpdatePlan

log = logging.getLogger(__name__)


class Learner(Protocol):
    """What is trained; the loop puts the wrapped `module` in its place."""

    module: torch.nn.Module


class Minibatch(Protocol):
    """What one backward pass takes; the shares of a step's minibatches over all processes add up to 1."""

    share: float


class Objective(Protocol):
    """What is minimised. An update may be several steps of the optimizer, each over some minibatches."""

    def minibatches(self, learner, plan: UpdatePlan) -> Iterator[Sequence[Minibatch]]:
        """This process's part of every step of an update, in order; none if there is nothing to learn."""

    def loss(self, learner, minibatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The minibatch's mean loss, and numbers to log."""

    def describe(self, minibatch) -> Sequence[str]:
        """The minibatch's prompts, for messages."""


@runtime_checkable
class HasUpdateMetrics(Protocol):
    """An objective that has something to log of every update, also of one in which nothing is learned."""

    def numbers(self) -> dict[str, float]:
        """Numbers of the last update, the same in every process."""


def update_metrics_of(objective: Objective) -> dict[str, float]:
    """What the objective has to log of its last update, if anything."""
    return objective.numbers() if isinstance(objective, HasUpdateMetrics) else {}
