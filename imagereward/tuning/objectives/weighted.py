"""Weighted: the weighted sum of several objectives, each with data of its own."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch

from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.objectives.base import Objective


class WeightedMinibatch(NamedTuple):
    """A minibatch of one of the objectives.

    child      index of the objective
    minibatch  the objective's own minibatch
    share      the minibatch's share
    """

    child: int
    minibatch: Any
    share: float


class Weighted(Objective):
    """sum_i weight_i * loss_i over objectives, given as {name: (weight, objective)}.

    Metrics of the first objective keep their names; those of the others get the objective's name before
    them, as in "pretraining/error".
    """

    def __init__(self, children: dict[str, tuple[float, Objective]]):
        self.names = list(children)
        self.children = list(children.values())

    @property
    def prompts(self) -> list[str]:
        """All prompts of all objectives."""
        return [prompt for _, child in self.children for prompt in child.prompts]

    @property
    def snapshots(self) -> list[str]:
        """The names that any of the objectives asks for."""
        return list(dict.fromkeys(name for _, child in self.children for name in child.snapshots))

    def minibatches(self, policy: Any, plan: UpdatePlan) -> Iterator[list[WeightedMinibatch]]:
        """In the k-th step of the optimizer, the minibatches of the k-th step of every objective.

        Objectives with fewer steps than others take part in the first steps.
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
        """Calls all objectives' `end_update`; their metrics together."""
        metrics: dict[str, float] = {}
        for index, (_, child) in enumerate(self.children):
            metrics |= self._renamed(index, child.end_update(policy, update))
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The objectives' states by name, of those that have any."""
        states = {name: child.state_dict() for name, (_, child) in self._named()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give every objective its own state back."""
        for name, (_, child) in self._named():
            if name in state:
                child.load_state_dict(state[name])

    def _named(self) -> list[tuple[str, tuple[float, Objective]]]:
        return list(zip(self.names, self.children, strict=True))

    def _renamed(self, child: int, metrics: dict[str, Any]) -> dict[str, Any]:
        return {f"{self.names[child]}/{name}" if child else name: value for name, value in metrics.items()}
