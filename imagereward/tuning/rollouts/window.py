"""Window: the sampling steps that have noise and are trained."""

import torch
from pydantic import Field, model_validator

from imagereward.errors import InputError
from imagereward.tuning.config import Config
from imagereward.tuning.data.seeding import random_generator


class Window(Config):
    """The consecutive sampling steps that have noise and are trained; all other steps are deterministic.

    size   number of steps; the first of them is drawn for each update, uniformly, so that all are in
           first..last. 0: all of first..last
    first  index of the earliest step
    last   index of the latest step; default: steps - 2, because the last step has hardly any noise
    """

    size: int = Field(
        0, ge=0, description="trained steps in a row, drawn for each update; 0: all of first..last"
    )
    first: int = Field(0, ge=0, description="index of the first step that may be trained")
    last: int | None = Field(
        None, ge=0, description="index of the last step that may be trained; default: steps - 2"
    )

    @model_validator(mode="after")
    def _in_order(self):
        if self.last is not None and self.first > self.last:
            raise ValueError(f"first={self.first} is after last={self.last}")
        return self

    def bounds(self, steps: int) -> range:
        """first..last on a grid of `steps` steps. Raises InputError if the grid lacks some of them."""
        last = max(0, steps - 2) if self.last is None else self.last
        allowed = range(self.first, last + 1)
        if last >= steps or not allowed:
            raise InputError(
                f"window: {self.first}..{last} of {steps} sampling steps, 0..{steps - 1}: expected "
                "window.first <= window.last < steps (default of last: steps - 2)"
            )
        if self.size > len(allowed):
            raise InputError(
                f"window.size={self.size}: from {self.first} to {last} are {len(allowed)} steps; expected "
                "at most as many, or more steps="
            )
        return allowed

    def draw(self, steps: int, seed: int, update: int) -> range:
        """The trained steps of an update, of a grid of `steps`; the same for all samples and processes."""
        allowed = self.bounds(steps)
        size = self.size or len(allowed)
        more = torch.randint(len(allowed) - size + 1, (), generator=random_generator(seed, "window", update))
        start = allowed.start + int(more)
        return range(start, start + size)
