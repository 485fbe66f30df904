"""One file an objective; here, what the loop asks of one, and what recipes call those of generators."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from imagereward.errors import InputError
from imagereward.tuning.config import Config
from imagereward.tuning.named import named

# A recipe's objective -> its config, whose `make` builds it. A recipe may also name "module:Config" itself.
OBJECTIVES = {
    "refl": "imagereward.tuning.objectives.refl:ReFLConfig",
    "grpo": "imagereward.tuning.objectives.grpo:GRPOConfig",
    "sft": "imagereward.tuning.objectives.sft:SFTConfig",
}


class Learner(Protocol):
    """What is trained; the loop puts the wrapped `module` in its place."""

    module: torch.nn.Module


class Minibatch(Protocol):
    """What one backward pass takes; the shares of a step's minibatches over all processes add up to 1."""

    share: float


class Objective(Protocol):
    """What is minimised. An update may be several steps of the optimizer, each over some minibatches."""

    def minibatches(self, learner, update: int, rank: int, ranks: int) -> Iterator[Sequence[Minibatch]]:
        """This process's part of every step of an update, in order; none if there is nothing to learn."""

    def loss(self, learner, minibatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The minibatch's mean loss, and numbers to log."""

    def describe(self, minibatch) -> Sequence[str]:
        """The minibatch's prompts, for messages."""


@runtime_checkable
class Numbered(Protocol):
    """An objective that has something to log of every update, also of one in which nothing is learned."""

    def numbers(self) -> dict[str, float]:
        """Numbers of the last update, the same in every process."""


def numbers_of(objective: Objective) -> dict[str, float]:
    """What the objective has to log of its last update, if anything."""
    return objective.numbers() if isinstance(objective, Numbered) else {}


def config_class(objective: str) -> Any:
    """The config of a recipe's objective. Raises InputError for one that is not there."""
    known = f"known: {', '.join(OBJECTIVES)}"
    try:
        found = named(OBJECTIVES.get(objective, objective))
    except (ImportError, AttributeError) as error:
        if objective in OBJECTIVES:
            raise  # a library of the extra is missing
        raise InputError(f"objective={objective!r}: {error}; {known}") from error
    if not (isinstance(found, type) and issubclass(found, Config)):
        raise InputError(f"objective={objective!r} is no config of an objective; {known}")
    return found
