"""Several objectives at once: one accumulation an update, each child with data of its own."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch

from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.objectives.base import update_metrics_of


class WeightedMinibatch(NamedTuple):
    """A minibatch and whose it is."""

    child: int
    batch: Any
    share: float


class Weighted:
    """The weighted sum of objectives' losses, `{name: (weight, objective)}`."""

    def __init__(self, children: dict[str, tuple[float, Any]]):
        self.names = list(children)
        self.children = list(children.values())

    @property
    def texts(self) -> list[str]:
        """Every prompt that there is."""
        return [text for _, child in self.children for text in child.texts]

    def minibatches(self, policy, plan: UpdatePlan) -> Iterator[list[WeightedMinibatch]]:
        """Step by step, what each child steps through; those with fewer steps take part in the first."""
        streams = [each.minibatches(policy, plan) for _, each in self.children]
        for step in zip_longest(*streams, fillvalue=()):
            yield [
                WeightedMinibatch(child, batch, batch.share)
                for child, part in enumerate(step)
                for batch in part
            ]

    def loss(self, policy, part: WeightedMinibatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The part's child's loss times its weight; the metrics under the child's name."""
        weight, child = self.children[part.child]
        loss, metrics = child.loss(policy, part.batch)
        return weight * loss, self._named(part.child, metrics)

    def numbers(self) -> dict[str, float]:
        """The children's numbers of the whole update."""
        every = [self._named(i, update_metrics_of(child)) for i, (_, child) in enumerate(self.children)]
        return {key: value for each in every for key, value in each.items()}

    def _named(self, child: int, values: dict) -> dict:
        """Under the child's name, but for the first child's."""
        return {f"{self.names[child]}/{key}" if child else key: value for key, value in values.items()}

    def describe(self, part: WeightedMinibatch) -> Sequence[str]:
        """The part's prompts."""
        return self.children[part.child][1].describe(part.batch)
