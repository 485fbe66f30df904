"""Objective: the base class of what a training minimises, with all that the trainer asks of it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from imagereward.tuning.data.plan import UpdatePlan


class Minibatch(Protocol):
    """The samples of one backward pass.

    share  the minibatch's weight in the loss of its optimizer step, 0..1. The shares of a step's minibatches
           add up to 1 over all processes
    """

    @property
    def share(self) -> float:
        """The minibatch's weight in the loss of its optimizer step."""


class Objective(ABC):
    """A loss, and the minibatches that it is computed on.

    In every update the trainer calls, in every process: `minibatches`, `loss` of each minibatch with its
    backward pass, a step of the optimizer after each list of minibatches, and `end_update` last.

    `policy` is what is trained: a `Policy` for image generators. Whatever is random is drawn by sample number
    (`tuning/data/seeding.py`), so that a resumed run and one in more processes have the same numbers.
    """

    @property
    @abstractmethod
    def prompts(self) -> Sequence[str]:
        """All prompts of the training data: text caches encode them in advance, evaluation draws some."""

    @property
    def snapshots(self) -> Sequence[str]:
        """Names of snapshots that the trainer takes of the weights before the first update.

        They are then in `policy.snapshots`; checkpoints keep them. "reference" is never moved; the objective
        may move others in `end_update`. Default: none.
        """
        return ()

    @abstractmethod
    def minibatches(self, policy: Any, plan: UpdatePlan) -> Iterator[Sequence[Any]]:
        """This process's minibatches of one update: a list for every step of the optimizer, in order.

        A minibatch is any object with a `share` (see `Minibatch`). Every process yields equally many lists.
        No list at all means that there is nothing to learn in this update; an empty one, that this process
        has nothing to do in that step, which the trainer refuses with InputError.

        The generator is advanced between steps of the optimizer: what it computes after a `yield` sees the
        weights after that step.
        """

    @abstractmethod
    def loss(self, policy: Any, minibatch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(loss, metrics) of a minibatch: its mean loss, a scalar with gradient, and scalars to log by name.

        Metrics are averaged over the update's minibatches, weighted by their shares. Raises
        NonFiniteScoreError for an image that is not finite.
        """

    @abstractmethod
    def prompts_in(self, minibatch: Any) -> Sequence[str]:
        """The minibatch's prompts, which errors name."""

    def end_update(self, policy: Any, update: int) -> dict[str, float]:
        """Called after the last optimizer step of an update, in every process; returns metrics to log.

        update  index of the update, from 0

        Called also when nothing was learned. The metrics must be the same in every process. The place to move
        snapshots of the policy, such as `policy.snapshots["old"]`. Default: no metrics.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints keep of the objective: tensors, numbers, strings, and lists and dicts of them.

        Must be the same in every process; the first one's is written. Default: nothing.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027  # optional
        """Take back a `state_dict` when a run is resumed. Default: there is nothing to take back."""
