"""Window: the steps of a trajectory that are trained."""

import torch
from pydantic import Field, model_validator

from imagereward.errors import InputError
from imagereward.tuning.config import Config
from imagereward.tuning.data.seeding import random_generator


class Window(Config):
    """Which steps have noise and are trained; before and after them sampling is deterministic.

    size   so many steps in a row, drawn anew for every update from first..last; 0: all of these
    last   default: the last but one, for in the last one there is hardly noise left
    """

    size: int = Field(
        0, ge=0, description="trained steps in a row, drawn for each update; 0: all of first..last"
    )
    first: int = Field(0, ge=0, description="index of the first step that may be trained")
    last: int | None = Field(None, ge=0, description="index of the last one; default: steps - 2")

    @model_validator(mode="after")
    def _in_order(self):
        if self.last is not None and self.first > self.last:
            raise ValueError(f"first={self.first} is after last={self.last}")
        return self

    def bounds(self, steps: int) -> range:
        """The steps it may take. Raises InputError if a grid of so many does not have them."""
        last = max(0, steps - 2) if self.last is None else self.last
        allowed = range(self.first, last + 1)
        if last >= steps or not allowed:
            raise InputError(f"window: {self.first}..{last} of {steps} sampling steps, 0..{steps - 1}")
        if self.size > len(allowed):
            raise InputError(f"window.size={self.size}: from {self.first} to {last} are {len(allowed)} steps")
        return allowed

    def draw(self, steps: int, seed: int, update: int) -> range:
        """An update's steps, the same for all of its samples, in every process."""
        allowed = self.bounds(steps)
        size = self.size or len(allowed)
        more = torch.randint(len(allowed) - size + 1, (), generator=random_generator(seed, "window", update))
        start = allowed.start + int(more)
        return range(start, start + size)
