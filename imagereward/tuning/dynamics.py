"""How noise is added and taken away: the same `step` samples a trajectory and scores one that was stored.

float32 throughout, or float64. `i` is a step's index on the sampling grid, 0 the noisiest; it is a tensor
[B], for it may differ from sample to sample.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch

from imagereward.errors import InputError
from imagereward.images import full_precision

Prediction = Literal["epsilon", "v_prediction", "sample"]


class Step(NamedTuple):
    """One denoising step. `logp` [B] is averaged over a sample's elements; None where `std` is 0."""

    next: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    logp: torch.Tensor | None
    x0: torch.Tensor


class Dynamics(Protocol):
    """What an objective may ask of any family's noise."""

    steps: int

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
    """

    alphas_T: torch.Tensor
    times_N: torch.Tensor
    prediction: Prediction = "epsilon"
    eta: float = 0.0
    final_alpha: float = 1.0

    @classmethod
    def like(cls, scheduler, steps: int, eta: float = 0.0) -> "Diffusion":
        """With the noise and the grid of a diffusers scheduler, of whatever kind, as DDIM would space it."""
        from diffusers import DDIMScheduler

        ddim = DDIMScheduler.from_config(scheduler.config)
        if not 1 <= steps <= ddim.config.num_train_timesteps:
            raise InputError(f"steps={steps}: expected 1 to {ddim.config.num_train_timesteps}")
        ddim.set_timesteps(steps)
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

    def model_time(self, i_B: torch.Tensor) -> torch.Tensor:
        return self.times_N.to(i_B.device)[i_B]

    def step(self, x, prediction, i_B, noise=None, next=None) -> Step:
        x, prediction = full_precision(x), full_precision(prediction)
        alphas = self.alphas_T.to(x.device)
        alpha = _like(alphas[self.model_time(i_B)], x)
        later = self.model_time((i_B + 1).clamp(max=self.steps - 1))
        after = torch.where(i_B + 1 < self.steps, alphas[later], alphas.new_tensor(self.final_alpha))
        after = _like(after, x)
        x0, epsilon = self._both(x, prediction, alpha)
        std = self.eta * ((1 - after) / (1 - alpha) * (1 - alpha / after)).clamp(min=0).sqrt()
        mean = after.sqrt() * x0 + (1 - after - std**2).clamp(min=0).sqrt() * epsilon
        return finish(mean, std, x0, noise, next)

    def to_x0(self, x, prediction, i_B) -> torch.Tensor:
        alpha = _like(self.alphas_T.to(x.device)[self.model_time(i_B)], x)
        return self._both(full_precision(x), full_precision(prediction), alpha)[0]

    def add_noise(self, x0, noise, time_B) -> torch.Tensor:
        alpha = _like(self.alphas_T.to(x0.device)[time_B], x0)
        return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise

    def target(self, x0, noise, time_B) -> torch.Tensor:
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return x0
        alpha = _like(self.alphas_T.to(x0.device)[time_B], x0)
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


def finish(mean, std, x0, noise, next) -> Step:
    """A step to mean + std * noise, or to `next` as it was stored, with its log-probability."""
    deterministic = not bool((std > 0).any())
    if next is None:
        next = mean if noise is None or deterministic else mean + std * noise
    next = full_precision(next)
    return Step(next, mean, std, None if deterministic else log_probability(next, mean, std), x0)


def log_probability(x, mean, std) -> torch.Tensor:
    """log N(x; mean, std^2) [B], averaged over all other dimensions, in float32."""
    squared = ((x - mean) / std) ** 2 / 2
    return (-squared - std.log() - math.log(2 * math.pi) / 2).flatten(1).mean(1)


def _like(values_B: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values_B.to(full_precision(x).dtype).reshape(-1, *[1] * (x.ndim - 1))
