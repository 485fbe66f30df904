"""Objective: the base class of every training loss, with the methods that the trainer calls."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.requests import Row, prompts_of


class Minibatch(Protocol):
    """The samples of one backward pass.

    share  the minibatch's weight in the loss of its optimizer step, 0..1. The shares of a step's minibatches
           add up to 1 over all processes
    """

    @property
    def share(self) -> float:
        """The minibatch's weight in the loss of its optimizer step."""


class Objective(ABC):
    """A loss, and the minibatches on which it is computed.

    In every update the trainer does the following, in every process: it calls `minibatches`; for each
    minibatch of a list it calls `loss` and runs the backward pass; after each list the optimizer takes a
    step; at the end it calls `end_update`.

    `policy` is the object that is trained: for image generators, a `Policy`. Draw random numbers by sample
    number (`tuning/data/seeding.py`); then a resumed run, and a run in more processes, draw the same numbers.

    rows  all rows of the training data: prompts, with pictures where the model takes any. Evaluation draws
          the first
    """

    rows: Sequence[Row]

    @property
    def prompts(self) -> Sequence[str]:
        """All prompts of the training data; a text cache encodes all of them. Default: those of `rows`."""
        return prompts_of(self.rows)

    @property
    def snapshots(self) -> Sequence[str]:
        """Names of the snapshots that the trainer takes of the weights before the first update.

        `policy.snapshots` holds them by name, and checkpoints save them. They stay as they are unless the
        objective moves or replaces them in `end_update`. Default: none.
        """
        return ()

    @property
    def encodes_images(self) -> bool:
        """Whether minibatches encode images, other than the pictures of rows of the config's prompts.

        The autoencoder's encoder then stays on the device, also with latent_cache. Default: no.
        """
        return False

    def prepare(self) -> None:  # noqa: B027  # optional
        """Called once in every process, in the run's directory, before the first update: fills caches.

        Default: does nothing.
        """

    @abstractmethod
    def minibatches(self, policy: Any, plan: UpdatePlan) -> Iterator[Sequence[Any]]:
        """This process's minibatches of one update: a list for every step of the optimizer, in order.

        plan  the samples of the update, and this process's chunks of them

        A minibatch is any object with a `share` (see `Minibatch`). Every process must yield the same number
        of lists. No list means that there is nothing to learn in this update. An empty list means that this
        process has nothing to do in that step; the trainer then raises InputError.

        The trainer advances the iterator between steps of the optimizer, so code after a `yield` sees the
        weights after that step.
        """

    @abstractmethod
    def loss(self, policy: Any, minibatch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(loss, metrics) of a minibatch.

        loss     scalar with gradient: the mean over the minibatch's samples. The trainer minimises
                 sum over minibatches of share * loss
        metrics  {name: scalar without gradient}, logged as averages over the update's minibatches, weighted
                 by their shares

        Raises NonFiniteScoreError for an image or a score that is not finite.
        """

    @abstractmethod
    def prompts_in(self, minibatch: Any) -> Sequence[str]:
        """The minibatch's prompts, for error messages."""

    def end_update(self, policy: Any, update: int) -> dict[str, float]:
        """Called in every process after the last optimizer step of an update; returns {name: metric} to log.

        update  index of the update, from 0

        It is called after updates without minibatches too. Metrics must be equal in all processes. Move
        snapshots of the policy here, such as `policy.snapshots["old"]`. Default: no metrics.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The objective's state for checkpoints: tensors, numbers, strings, and lists and dicts of them.

        It must be equal in all processes; the first process writes it. Default: empty.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027  # optional
        """Restore the state that `state_dict` returned, when a run is resumed. Default: does nothing."""
