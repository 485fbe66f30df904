"""Weighted: the weighted sum of several objectives, each with its own data."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch

from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.objectives.base import Objective


class WeightedMinibatch(NamedTuple):
    """A minibatch of one of the objectives.

    child      index of the objective, from 0
    minibatch  the objective's own minibatch
    share      the share of that minibatch, 0..1
    """

    child: int
    minibatch: Any
    share: float


class Weighted(Objective):
    """The loss sum_i weight_i * loss_i over objectives.

    children  {name: (weight, objective)}

    The first objective's metrics keep their names. Metrics of the others are prefixed with the objective's
    name, as in "pretraining/error". `rows` are the first objective's.
    """

    def __init__(self, children: dict[str, tuple[float, Objective]]):
        self.names = list(children)
        self.children = list(children.values())
        self.rows = self.children[0][1].rows

    @property
    def prompts(self) -> list[str]:
        """All prompts of all objectives."""
        return [prompt for _, child in self.children for prompt in child.prompts]

    @property
    def snapshots(self) -> list[str]:
        """The names of the snapshots of all objectives, without repeats."""
        return list(dict.fromkeys(name for _, child in self.children for name in child.snapshots))

    @property
    def encodes_images(self) -> bool:
        """Whether an objective does."""
        return any(child.encodes_images for _, child in self.children)

    def prepare(self) -> None:
        """Prepares all objectives."""
        for _, child in self.children:
            child.prepare()

    def minibatches(self, policy: Any, plan: UpdatePlan) -> Iterator[list[WeightedMinibatch]]:
        """The k-th list holds the minibatches of every objective's k-th list.

        An objective with fewer steps of the optimizer than others takes part in the first steps.
        """
        streams = [child.minibatches(policy, plan) for _, child in self.children]
        for step in zip_longest(*streams, fillvalue=()):
            yield [
                WeightedMinibatch(child, minibatch, minibatch.share)
                for child, minibatches in enumerate(step)
                for minibatch in minibatches
            ]

    def loss(self, policy: Any, minibatch: WeightedMinibatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """weight * loss of the minibatch's objective, and its metrics."""
        weight, child = self.children[minibatch.child]
        loss, metrics = child.loss(policy, minibatch.minibatch)
        return weight * loss, self._renamed(minibatch.child, metrics)

    def prompts_in(self, minibatch: WeightedMinibatch) -> Sequence[str]:
        """The prompts of the objective's own minibatch."""
        return self.children[minibatch.child][1].prompts_in(minibatch.minibatch)

    def end_update(self, policy: Any, update: int) -> dict[str, float]:
        """Calls `end_update` of all objectives; returns their metrics in one dict."""
        metrics: dict[str, float] = {}
        for index, (_, child) in enumerate(self.children):
            metrics |= self._renamed(index, child.end_update(policy, update))
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """{name: state} of the objectives whose state is not empty."""
        states = {name: child.state_dict() for name, (_, child) in self._named()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of every objective that has one in `state`."""
        for name, (_, child) in self._named():
            if name in state:
                child.load_state_dict(state[name])

    def _named(self) -> list[tuple[str, tuple[float, Objective]]]:
        return list(zip(self.names, self.children, strict=True))

    def _renamed(self, child: int, metrics: dict[str, Any]) -> dict[str, Any]:
        return {f"{self.names[child]}/{name}" if child else name: value for name, value in metrics.items()}
