"""How noise is added and taken away: the same `step` samples a trajectory and scores one that was stored.

float32 throughout, or float64. `i` is a step's index on the sampling grid, 0 the noisiest; it is a tensor
[B], for it may differ from sample to sample.
"""

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
from pydantic import Field, model_validator

from imagereward.errors import IgnoredOptionWarning, InputError
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


@dataclass(frozen=True)
class Diffusion:
    """Variance-preserving diffusion in discrete time: DDIM (Song et al. 2021, arXiv:2010.02502), equation 12.

    alphas_T    products of alpha, one for every training time
    times_N     the sampling grid: training times, descending
    prediction  what the network predicts
    eta         0 is deterministic; 1 has DDPM's variance
    final_alpha the product after the last step
    storage     what new samples are rounded to
    """

    alphas_T: torch.Tensor
    times_N: torch.Tensor
    prediction: Prediction = "epsilon"
    eta: float = 0.0
    final_alpha: float = 1.0
    storage: torch.dtype | None = None

    @classmethod
    def like(cls, scheduler, steps: int, eta: float = 0.0) -> "Diffusion":
        """With the noise and the grid of a diffusers scheduler, of whatever kind, as DDIM spaces its times.

        A step leads to the next time of the grid. diffusers' DDIM steps by T // steps from each time, which
        is another place where the spacing is "trailing" or "linspace" and `steps` does not divide T: ours
        then agrees with its DDPM and differs from its DDIM.
        Raises InputError for a prediction or a number of steps that there is not. Warns, with an
        IgnoredOptionWarning, of options that clip the predicted clean sample, which is not done here.
        """
        from diffusers import DDIMScheduler

        if not hasattr(scheduler, "alphas_cumprod"):
            raise InputError(
                f"the model's noise, of its {type(scheduler).__name__}, is not the variance-preserving one "
                "that this family is trained with"
            )
        ddim = DDIMScheduler.from_config(scheduler.config)
        if not 1 <= steps <= ddim.config.num_train_timesteps:
            raise InputError(f"steps={steps}: expected 1 to {ddim.config.num_train_timesteps}")
        if ddim.config.prediction_type not in get_args(Prediction):
            raise InputError(
                f"the scheduler's prediction_type={ddim.config.prediction_type!r}: this family takes "
                f"{', '.join(get_args(Prediction))}"
            )
        for option in ("clip_sample", "thresholding"):
            warn_of_ignored(scheduler, option)
        ddim.set_timesteps(steps)
        if int(ddim.timesteps.max()) >= len(ddim.alphas_cumprod):
            raise InputError(
                f"steps={steps} with the scheduler's steps_offset={ddim.config.steps_offset}: the first time "
                f"would be {int(ddim.timesteps.max())}, the last there is {len(ddim.alphas_cumprod) - 1}; "
                "expected fewer steps"
            )
        return cls(
            ddim.alphas_cumprod.float(),
            ddim.timesteps.long(),
            ddim.config.prediction_type,
            eta,
            float(ddim.final_alpha_cumprod),
        )

    @property
    def steps(self) -> int:
        """How many steps the sampling grid has."""
        return len(self.times_N)

    def with_noise(self, noise: Noise, storage: torch.dtype | None = None) -> "Diffusion":
        if noise.kind != "ddim":
            raise InputError(f"noise.kind={noise.kind!r}: this model is no flow model, and takes 'ddim'")
        return replace(self, eta=noise.level, storage=storage)

    def without_noise(self) -> "Diffusion":
        return replace(self, eta=0.0)

    def model_time(self, i_B: torch.Tensor) -> torch.Tensor:
        return self.times_N.to(i_B.device)[i_B]

    def step(self, x, prediction, i_B, noise=None, next=None) -> Step:
        x, prediction = full_precision(x), full_precision(prediction)
        alphas = self.alphas_T.to(x.device)
        alpha = a_row_each(alphas[self.model_time(i_B)], x)
        later = self.model_time((i_B + 1).clamp(max=self.steps - 1))
        after = torch.where(i_B + 1 < self.steps, alphas[later], alphas.new_tensor(self.final_alpha))
        after = a_row_each(after, x)
        x0, epsilon = self._both(x, prediction, alpha)
        std = self.eta * ((1 - after) / (1 - alpha) * (1 - alpha / after)).clamp(min=0).sqrt()
        mean = after.sqrt() * x0 + (1 - after - std**2).clamp(min=0).sqrt() * epsilon
        return finish(mean, std, torch.ones_like(std), x0, noise, next, self.storage)

    def to_x0(self, x, prediction, i_B) -> torch.Tensor:
        alpha = a_row_each(self.alphas_T.to(x.device)[self.model_time(i_B)], x)
        return self._both(full_precision(x), full_precision(prediction), alpha)[0]

    def add_noise(self, x0, noise, time_B) -> torch.Tensor:
        alpha = a_row_each(self.alphas_T.to(x0.device)[time_B], x0)
        return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise

    def target(self, x0, noise, time_B) -> torch.Tensor:
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return x0
        alpha = a_row_each(self.alphas_T.to(x0.device)[time_B], x0)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * x0

    def draw_times(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(len(self.alphas_T), (count,), generator=generator)

    def min_snr_weights(self, time_B: torch.Tensor, gamma: float) -> torch.Tensor:
        """What an error of the prediction counts [B]: that of x0 counts min(signal-to-noise, gamma)."""
        alpha = self.alphas_T.to(time_B.device)[time_B]
        ratio = alpha / (1 - alpha)
        # An error of epsilon is sqrt(ratio) times that of x0; one of v is sqrt(ratio + 1) times.
        per_x0 = {"epsilon": ratio, "v_prediction": ratio + 1, "sample": torch.ones_like(ratio)}
        return ratio.clamp(max=gamma) / per_x0[self.prediction]

    def _both(self, x, prediction, alpha):
        """(x0, epsilon) that the prediction implies."""
        if self.prediction == "epsilon":
            return (x - (1 - alpha).sqrt() * prediction) / alpha.sqrt(), prediction
        if self.prediction == "sample":
            return prediction, (x - alpha.sqrt() * prediction) / (1 - alpha).sqrt()
        x0 = alpha.sqrt() * x - (1 - alpha).sqrt() * prediction
        return x0, alpha.sqrt() * prediction + (1 - alpha).sqrt() * x


def finish(mean, std, dt, x0, noise, next, storage: torch.dtype | None = None) -> Step:
    """A step to mean + std * noise, or to `next` as it was stored, with its log-probability.

    A new sample is rounded to `storage` before its probability is taken: it is what will be scored again.
    """
    deterministic = not bool((std > 0).any())
    if next is None:
        next = rounded(mean if noise is None or deterministic else mean + std * noise, storage)
    next = full_precision(next)
    return Step(next, mean, std, None if deterministic else log_probability(next, mean, std), x0, dt)


def rounded(x: torch.Tensor, storage: torch.dtype | None) -> torch.Tensor:
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


def a_row_each(values_B: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
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
