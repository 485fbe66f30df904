"""The protocol Dynamics, which objectives use for diffusion and flow models alike, with its Step and Noise.

Shapes and units of this folder:

x, prediction  noisy latents and the network's output there, [B, C, h, w]
i_B            index [B] of a step on the sampling grid, 0 the noisiest, steps - 1 the last; an index for each
               sample, so that the samples of a batch may be at different steps
time_B         noise level [B] in the unit that the network takes as its time: for diffusion models the index
               of a training time, 0 to T - 1; for flow models time_scale * sigma, with sigma in [0, 1]
sigma_t        standard deviation of the noise that a flow model's step adds, per square root of its length

Computations are in float32, or float64 where the inputs are.
"""

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
    """How much noise a sampling step adds to a sample.

    ddim       sigma^2 = level^2 (1 - a') / (1 - a) (1 - a / a'), where a and a' are the products of alphas
               before and after the step: level is eta, and 1 is DDPM's variance (Song et al. 2021,
               arXiv:2010.02502, equation 16). For diffusion models; the other kinds are for flow models
    flow_grpo  sigma_t = level * sqrt(sigma / (1 - sigma)) (Liu et al. 2025, arXiv:2505.05470)
    constant   sigma_t = level (Xue et al. 2025, arXiv:2505.07818)
    table      sigma_t is the table's value for the step; 0 makes a step deterministic
    cps        the share sin^2(level * pi / 2) of the variance of a sample's noise is new noise, level in
               [0, 1] (Wang and Yu 2025, arXiv:2509.05952)
    """

    kind: Literal["ddim", "flow_grpo", "constant", "table", "cps"] = Field(
        description="ddim for diffusion models; the others for flow models"
    )
    level: float = Field(
        1.0,
        ge=0,
        description="how much noise: eta for ddim, the factor of sigma_t for flow_grpo, sigma_t itself for "
        "constant, 0 to 1 for cps",
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
        if self.kind == "ddim" and self.level > 1:
            raise ValueError(f"level={self.level}: with kind='ddim', expected at most 1, DDPM's variance")
        return self


class Step(NamedTuple):
    """One sampling step from x_i to x_{i+1} ~ N(mean, std^2); all in float32 or float64.

    next  x_{i+1} [B, C, h, w], new or given
    mean  of x_{i+1} [B, C, h, w]
    std   its standard deviation [B, 1, 1, 1]; 0 in rows whose step is deterministic
    logp  log N(next; mean, std^2), averaged over a sample's elements [B]; NaN in rows whose std is 0, None if
          that is all of them
    x0    the clean latents [B, C, h, w] that the prediction implies
    dt    [B, 1, 1, 1]: sigma_i - sigma_{i+1} for a flow's SDE steps, where std = sigma_t * sqrt(dt), and for
          its steps without noise; 1 for ddim and cps
    """

    next: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    logp: torch.Tensor | None
    x0: torch.Tensor
    dt: torch.Tensor


class Dynamics(Protocol):
    """A model's noise: a sampling grid with its steps, and the noise of training. Immutable.

    steps    number of steps of the sampling grid
    storage  dtype that new samples are rounded to, as they will be stored; None: not rounded
    """

    steps: int
    storage: torch.dtype | None

    def with_noise(self, noise: Noise, storage: torch.dtype | None = None) -> "Dynamics":
        """The same grid with steps that add noise, and round new samples to `storage`.

        Raises InputError for a kind of noise that is not this model's, and for a table of another length.
        """

    def without_noise(self) -> "Dynamics":
        """The same grid with deterministic steps: DDIM with eta = 0, or Euler steps of the flow's ODE."""

    def model_time(self, i_B: torch.Tensor) -> torch.Tensor:
        """The time [B] that the network takes at step i: an index of training times, or 1000 * sigma."""

    def step(
        self,
        x: torch.Tensor,
        prediction: torch.Tensor,
        i_B: torch.Tensor,
        noise: torch.Tensor | None = None,
        next: torch.Tensor | None = None,
    ) -> Step:
        """The step from x_i to x_{i+1}; the same function draws a new sample and scores a stored one.

        x           x_i [B, C, h, w]
        prediction  the network's output at x_i and model_time(i) [B, C, h, w], with guidance: epsilon, x0 or
                    v for diffusion models, the velocity epsilon - x0 for flow models
        i_B         index of the step on the grid [B], 0 to steps - 1
        noise       standard normal [B, C, h, w]: x_{i+1} = mean + std * noise; without it, the mean
        next        a stored x_{i+1} [B, C, h, w], taken as it is: `logp` is then its log-probability

        Gradients reach `prediction` through mean, x0, logp and a new `next`.
        """

    def to_x0(self, x: torch.Tensor, prediction: torch.Tensor, i_B: torch.Tensor) -> torch.Tensor:
        """The clean latents x0 [B, C, h, w] that the prediction at x_i implies."""

    def x0_at(self, x: torch.Tensor, prediction: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
        """The clean latents x0 [B, C, h, w] that the prediction at x and training times [B] implies."""

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
        """Clean latents [B, C, h, w] with the standard normal noise that belongs to training times [B]."""

    def target(self, x0: torch.Tensor, noise: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
        """The prediction [B, C, h, w] that is right at add_noise(x0, noise, time): the target of training."""

    def draw_times(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Random training times [count], on the CPU, distributed as the family's training has them."""

    def times_at(self, share_B: torch.Tensor) -> torch.Tensor:
        """The training times [B] at these shares, 0..1, of the largest: sigma itself for flow models."""

    def share_of(self, time_B: torch.Tensor) -> torch.Tensor:
        """float32 [B]: training times divided by the largest, 0..1; sigma for flow models."""

    def min_snr_weights(self, time_B: torch.Tensor, gamma: float) -> torch.Tensor:
        """Loss weights [B] for the squared error of the prediction: min(SNR, gamma) / SNR for epsilon.

        Raises InputError for flow models, which weight by drawing their times unevenly.
        """


def gaussian_step(
    mean: torch.Tensor,
    std: torch.Tensor,
    dt: torch.Tensor,
    x0: torch.Tensor,
    noise: torch.Tensor | None,
    next: torch.Tensor | None,
    storage: torch.dtype | None = None,
) -> Step:
    """The Step with this mean and standard deviation, to mean + std * noise or to a given `next`.

    A new sample is rounded to `storage` before its log-probability is taken, because the rounded sample is
    the one that is scored again later. Without noise, or with a std of 0 in all rows, it is the mean.
    """
    deterministic = not bool((std > 0).any())
    if next is None:
        next = round_to_storage(mean if noise is None or deterministic else mean + std * noise, storage)
    next = full_precision(next)
    return Step(next, mean, std, None if deterministic else log_probability(next, mean, std), x0, dt)


def round_to_storage(x: torch.Tensor, storage: torch.dtype | None) -> torch.Tensor:
    """x rounded to what the dtype `storage` can hold, in its own dtype again; None: x as it is."""
    return x if storage is None else x.to(storage).to(x.dtype)


def log_probability(x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """log N(x; mean, std^2) [B], averaged over all other dimensions, in float32; NaN where std is 0."""
    spread = torch.where(std > 0, std, 1.0)  # a division by 0 would put NaN in gradients
    squared = ((x - mean) / spread) ** 2 / 2
    density = (-squared - spread.log() - math.log(2 * math.pi) / 2).flatten(1).mean(1)
    return torch.where((std > 0).flatten(1).all(1), density, math.nan)


def kl_divergence(mean: torch.Tensor, reference: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """KL of N(mean, std^2) to N(reference, std^2) [B]: the average of (mean - reference)^2 / (2 std^2)."""
    return ((mean - reference) ** 2 / (2 * std**2)).flatten(1).mean(1)


def expand_like(values_B: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values [B] as [B, 1, ...] with as many dimensions as x, in its dtype, or float32 for halves."""
    return values_B.to(full_precision(x).dtype).reshape(-1, *[1] * (x.ndim - 1))


def warn_of_ignored(scheduler: Any, option: str) -> None:
    """Warns with IgnoredOptionWarning if the scheduler's config turns on an option that steps here lack."""
    if scheduler.config.get(option):
        warnings.warn(
            f"the {type(scheduler).__name__}'s {option}=true is ignored: steps of training, evaluation and "
            "compare do not have it, so that the pipeline itself draws other images; "
            f"pipeline.scheduler.register_to_config({option}=False) makes both the same",
            IgnoredOptionWarning,
            stacklevel=3,
        )
