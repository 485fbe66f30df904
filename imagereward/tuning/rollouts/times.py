"""Times: the training times at which objectives that learn from clean images add noise."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator

from imagereward.errors import InputError
from imagereward.tuning.config import Config
from imagereward.tuning.data.seeding import random_generator
from imagereward.tuning.sampling.base import Dynamics

# Attempts to draw a time within lowest..highest from the family's own distribution.
ATTEMPTS = 1000


class Times(Config):
    """The training times of a sample: `count` of them in an update, each a pass of the network.

    family   from the distribution of the family's training: uniform for diffusion models, logit-normal for
             flow models. Times outside lowest..highest are drawn again
    uniform  uniform in lowest..highest, which is cut into `count` equal parts with one time in each
    grid     from the steps first..last of the sampling grid, which are cut into `count` parts with one step
             from each; count=0 takes all of them

    The parts are taken in random order. Every sample has its own times.
    """

    draw: Literal["family", "uniform", "grid"] = Field(
        "family", description="the family's training times, uniform ones, or steps of the sampling grid"
    )
    count: int = Field(
        1, ge=0, description='times of each sample in an update; 0, for draw="grid": all of first..last'
    )
    lowest: float = Field(
        0.0, ge=0, le=1, description="least noise, as a share of the largest training time: sigma for flows"
    )
    highest: float = Field(1.0, ge=0, le=1, description="most noise, as a share of the largest time")
    first: int = Field(0, ge=0, description='index of the first grid step, for draw="grid"')
    last: int | None = Field(
        None, ge=0, description='index of the last grid step, for draw="grid"; default: steps - 2'
    )

    @model_validator(mode="after")
    def _in_order(self):
        grid = self.draw == "grid"
        if grid and (self.lowest, self.highest) != (0.0, 1.0):
            raise ValueError("lowest and highest are for draw='family' and 'uniform'; a grid has first, last")
        if not grid and (self.first or self.last is not None):
            raise ValueError(f"first and last are for draw='grid', not {self.draw!r}")
        if not grid and not self.count:
            raise ValueError(f"count=0 is for draw='grid', not {self.draw!r}; expected at least 1")
        if self.lowest >= self.highest:
            raise ValueError(f"lowest={self.lowest} is not below highest={self.highest}")
        if self.last is not None and self.first > self.last:
            raise ValueError(f"first={self.first} is after last={self.last}")
        return self

    def grid_steps(self, steps: int) -> range:
        """first..last on a grid of `steps` sampling steps. Raises InputError if the grid lacks them."""
        last = max(0, steps - 2) if self.last is None else self.last
        allowed = range(self.first, last + 1)
        if last >= steps or not allowed:
            raise InputError(
                f"times: {self.first}..{last} of {steps} sampling steps, 0..{steps - 1}: expected "
                "times.first <= times.last < steps (default of last: steps - 2)"
            )
        if self.count > len(allowed):
            raise InputError(
                f"times.count={self.count}: from {self.first} to {last} are {len(allowed)} steps; expected "
                "at most as many, or more steps="
            )
        return allowed

    def passes(self, steps: int) -> int:
        """Times of each sample in an update, on a grid of `steps` steps; InputError as in `grid_steps`."""
        if self.draw != "grid":
            return self.count
        allowed = self.grid_steps(steps)
        return self.count or len(allowed)

    def of_samples(
        self, dynamics: Dynamics, samples: Sequence[int], seed: int, pass_index: int
    ) -> torch.Tensor:
        """The time [B] of each sample in pass `pass_index`, 0..passes - 1, on the CPU.

        Sample s's times are seeded by (seed, "times", s), so they depend on no other sample.
        """
        return torch.cat([self._of_sample(dynamics, sample, seed, pass_index) for sample in samples])

    def _of_sample(self, dynamics: Dynamics, sample: int, seed: int, pass_index: int) -> torch.Tensor:
        source = random_generator(seed, "times", sample)
        count = self.passes(dynamics.steps)
        part = int(torch.randperm(count, generator=source)[pass_index])
        if self.draw == "grid":
            allowed = self.grid_steps(dynamics.steps)
            begin, end = (len(allowed) * edge // count for edge in (part, part + 1))
            drawn = torch.randint(begin, end, (count,), generator=source)[pass_index]
            return dynamics.model_time(drawn.reshape(1) + allowed.start)
        if self.draw == "uniform":
            within = (part + float(torch.rand(count, generator=source)[pass_index])) / count
            return dynamics.times_at(torch.tensor([self.lowest + within * (self.highest - self.lowest)]))
        source = random_generator(seed, "times", sample, pass_index)
        for _ in range(ATTEMPTS):
            time = dynamics.draw_times(1, source)
            if self.lowest <= float(dynamics.share_of(time)) <= self.highest:
                return time
        raise InputError(
            f"times.lowest={self.lowest}, highest={self.highest}: the family draws hardly any time between; "
            'widen the range, or draw="uniform"'
        )
