"""What diffusion and flow models have in common: Dynamics, its Step and Noise, log-probabilities, KL."""

import math
import warnings
from typing import Any, Literal, NamedTuple, Protocol

import torch
from pydantic import Field, model_validator

from imagereward.errors import IgnoredOptionWarning
from imagereward.precision import full_precision
from imagereward.tuning.config import Config

Prediction = Literal["epsilon", "v_prediction", "sample"]


class Noise(Config):
    """What a sampling step adds to a sample.

    ddim       level is eta: 1 has DDPM's variance. Diffusion models take this one, flow models the others
    flow_grpo  sigma_t = level * sqrt(sigma / (1 - sigma)) (Liu et al. 2025, arXiv:2505.05470)
    constant   sigma_t = level (Xue et al. 2025, arXiv:2505.07818)
    table      sigma_t is the table's value of the step; 0 makes a step deterministic
    cps        level is the share of the noise that is new, as sin^2(level * pi / 2) of its variance
               (Wang and Yu 2025, arXiv:2509.05952)
    """

    kind: Literal["ddim", "flow_grpo", "constant", "table", "cps"] = Field(
        description="ddim for diffusion models; the others for flow models"
    )
    level: float = Field(
        1.0, ge=0, description="how much noise: eta, sigma_t's factor, or a share, by the kind"
    )
    table: tuple[float, ...] = Field((), strict=False, description='sigma_t of each step, for kind="table"')

    @model_validator(mode="after")
    def _whole(self):
        if bool(self.table) != (self.kind == "table"):
            raise ValueError(f"kind={self.kind!r} with table={self.table}: a table belongs to kind='table'")
        if any(value < 0 for value in self.table):
            raise ValueError(f"table={self.table}: expected no value below 0")
        if self.kind == "cps" and self.level > 1:
            raise ValueError(f"level={self.level}: at most 1 of the noise can be new")
        return self


class Step(NamedTuple):
    """One denoising step. `logp` [B] is averaged over a sample's elements.

    It is None where no row has noise (`std` is 0), and NaN in rows without among rows with. `dt` is the
    length of the step where noise has a rate, std = rate * sqrt(dt), and 1 where it has none.
    """

    next: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    logp: torch.Tensor | None
    x0: torch.Tensor
    dt: torch.Tensor


class Dynamics(Protocol):
    """What an objective may ask of any family's noise."""

    steps: int
    storage: torch.dtype | None

    def with_noise(self, noise: Noise, storage: torch.dtype | None = None) -> "Dynamics":
        """The same grid with steps that add noise; samples are rounded to `storage` as they are drawn."""

    def without_noise(self) -> "Dynamics":
        """The same grid, deterministic."""

    def model_time(self, i_B: torch.Tensor) -> torch.Tensor:
        """What the denoiser takes as time at grid index i."""

    def step(self, x, prediction, i_B, noise=None, next=None) -> Step:
        """From grid index i to i + 1: with `noise`, to a new sample; with `next`, to that stored one."""

    def to_x0(self, x, prediction, i_B) -> torch.Tensor:
        """The clean sample that the prediction implies."""

    def add_noise(self, x0, noise, time_B) -> torch.Tensor:
        """x0 as it is at a training time."""

    def target(self, x0, noise, time_B) -> torch.Tensor:
        """What the denoiser should predict there."""

    def draw_times(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Training times [count], as this family draws them."""

    def min_snr_weights(self, time_B, gamma: float) -> torch.Tensor:
        """What the prediction's error at these times should count [B]."""


def gaussian_step(mean, std, dt, x0, noise, next, storage: torch.dtype | None = None) -> Step:
    """A step to mean + std * noise, or to `next` as it was stored, with its log-probability.

    A new sample is rounded to `storage` before its probability is taken: it is what will be scored again.
    """
    deterministic = not bool((std > 0).any())
    if next is None:
        next = round_to_storage(mean if noise is None or deterministic else mean + std * noise, storage)
    next = full_precision(next)
    return Step(next, mean, std, None if deterministic else log_probability(next, mean, std), x0, dt)


def round_to_storage(x: torch.Tensor, storage: torch.dtype | None) -> torch.Tensor:
    """x as it is after having been stored in another precision."""
    return x if storage is None else x.to(storage).to(x.dtype)


def log_probability(x, mean, std) -> torch.Tensor:
    """log N(x; mean, std^2) [B], averaged over all other dimensions, in float32; NaN where std is 0."""
    spread = torch.where(std > 0, std, 1.0)  # so that no infinity reaches a gradient
    squared = ((x - mean) / spread) ** 2 / 2
    density = (-squared - spread.log() - math.log(2 * math.pi) / 2).flatten(1).mean(1)
    return torch.where((std > 0).flatten(1).all(1), density, math.nan)


def kl_divergence(mean, reference, std) -> torch.Tensor:
    """KL of N(mean, std^2) to N(reference, std^2) [B], averaged over all other dimensions."""
    return ((mean - reference) ** 2 / (2 * std**2)).flatten(1).mean(1)


def expand_like(values_B: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values [B] in the precision and with the dimensions of x [B, ...]."""
    return values_B.to(full_precision(x).dtype).reshape(-1, *[1] * (x.ndim - 1))


def warn_of_ignored(scheduler: Any, option: str) -> None:
    """An IgnoredOptionWarning if the scheduler's config turns on an option that steps here do not have."""
    if scheduler.config.get(option):
        warnings.warn(
            f"the {type(scheduler).__name__}'s {option}=true is ignored: steps of training, evaluation and "
            "compare do without it, so that the pipeline itself draws other images; "
            f"pipeline.scheduler.register_to_config({option}=False) makes both the same",
            IgnoredOptionWarning,
            stacklevel=3,
        )
