"""Flow models' noise: straight lines from data to noise, and three ways to walk them back.

x = (1 - sigma) x0 + sigma epsilon, and networks predict the velocity epsilon - x0 (Lipman et al. 2022,
arXiv:2210.02747; Esser et al. 2024, arXiv:2403.03206). sigma is in [0, 1], `after` the next one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from imagereward.errors import InputError
from imagereward.precision import full_precision
from imagereward.tuning.sampling.base import Noise, Step, expand_like, gaussian_step, warn_of_ignored

# (x, velocity, i_B, sigma, after) -> the next sample's mean and standard deviation, and the step's `dt`.
Moments = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Transition = Callable[..., Moments]


def euler(x, velocity, i_B, sigma, after) -> Moments:
    """The flow's ODE, one Euler step."""
    return x + (after - sigma) * velocity, torch.zeros_like(sigma), sigma - after


@dataclass(frozen=True)
class SDE:
    """A stochastic equation with the ODE's marginals as steps shrink (Liu et al. 2025, arXiv:2505.05470).

    `spreads_N` is sigma_t of every step; where it is 0 the step is Euler's.
    """

    spreads_N: torch.Tensor

    def __call__(self, x, velocity, i_B, sigma, after) -> Moments:
        spread, dt = expand_like(self.spreads_N.to(x.device)[i_B], x), after - sigma
        drift = spread**2 / (2 * sigma)
        mean = x * (1 + drift * dt) + velocity * (1 + drift * (1 - sigma)) * dt
        return mean, spread * (-dt).sqrt(), -dt


@dataclass(frozen=True)
class CPS:
    """Part of the predicted noise is exchanged for new, so that its amount stays what the next sigma says.

    Wang and Yu 2025, arXiv:2509.05952. Their log-probabilities are -|x - mean|^2, without variance
    or constant; these are the normal ones, so clip ranges do not carry over.
    """

    level: float

    def __call__(self, x, velocity, i_B, sigma, after) -> Moments:
        std = after * math.sin(self.level * math.pi / 2)
        x0, epsilon = x - sigma * velocity, x + (1 - sigma) * velocity
        return (1 - after) * x0 + (after**2 - std**2).clamp(min=0).sqrt() * epsilon, std, torch.ones_like(std)


@dataclass(frozen=True)
class Flow:
    """A sampling grid, how it is walked, and the noise of training.

    sigmas_N1   the grid, descending, and the 0 after its last step
    time_scale  the network's time is sigma times this
    shift       training times t, logit-normal, become shift t / (1 + (shift - 1) t), as the grid's do
    transition  euler, an SDE or CPS
    storage     what new samples are rounded to
    whole_times the network's times on the grid are rounded down to whole numbers
    """

    sigmas_N1: torch.Tensor
    time_scale: float = 1000.0
    shift: float = 1.0
    transition: Transition = euler
    storage: torch.dtype | None = None
    whole_times: bool = False

    @classmethod
    def like(cls, scheduler, steps: int, tokens: int, even: bool = False) -> "Flow":
        """With the grid of a pipeline's FlowMatchEulerDiscreteScheduler.

        tokens  image patches of a sample: with dynamic shifting, more of them shift the grid towards noise
        even    from 1 to 1 / steps before shifting, as FLUX asks; else as the scheduler spaces it
        """
        from diffusers import FlowMatchEulerDiscreteScheduler

        theirs = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
        config = theirs.config
        if not 1 <= steps <= config.num_train_timesteps:
            raise InputError(f"steps={steps}: expected 1 to {config.num_train_timesteps}")
        if config.invert_sigmas:
            raise InputError("the scheduler inverts its sigmas: expected them to fall from noise to data")
        warn_of_ignored(scheduler, "stochastic_sampling")
        slope = (config.max_shift - config.base_shift) / (
            config.max_image_seq_len - config.base_image_seq_len
        )
        mu = config.base_shift + slope * (tokens - config.base_image_seq_len)
        spacing = {"sigmas": np.linspace(1.0, 1 / steps, steps)} if even else {"num_inference_steps": steps}
        theirs.set_timesteps(**spacing, mu=mu if config.use_dynamic_shifting else None)
        shift = config.shift
        if config.use_dynamic_shifting:
            shift = math.exp(mu) if config.time_shift_type == "exponential" else mu
        return cls(theirs.sigmas.float(), float(config.num_train_timesteps), float(shift))

    @property
    def steps(self) -> int:
        """How many steps the sampling grid has."""
        return len(self.sigmas_N1) - 1

    def on_grid(self, shift: float | None, whole_times: bool) -> "Flow":
        """As many steps on another grid: sigma = shift t / (1 + (shift - 1) t), t even from 1 to 0.

        shift        None: the grid as it is
        whole_times  whether the network's times are rounded down to whole numbers, as in DanceGRPO

        Training times, which are drawn, stay as they are.
        """
        sigmas = self.sigmas_N1
        if shift is not None:
            even = torch.linspace(1, 0, self.steps + 1)
            sigmas = shift * even / (1 + (shift - 1) * even)
        return replace(self, sigmas_N1=sigmas, whole_times=whole_times)

    def with_noise(self, noise: Noise, storage: torch.dtype | None = None) -> "Flow":
        if noise.kind == "ddim":
            raise InputError(
                "noise.kind='ddim': this is a flow model, and takes 'flow_grpo', 'constant', 'table' or 'cps'"
            )
        if noise.kind == "table" and len(noise.table) != self.steps:
            raise InputError(f"noise.table has {len(noise.table)} values; there are {self.steps} steps")
        if noise.kind == "cps":
            return replace(self, transition=CPS(noise.level), storage=storage)
        sigmas = self.sigmas_N1[:-1]
        if noise.kind == "flow_grpo":
            # At sigma = 1, which shifting rounds, the denominator would be 0: that of the second step stands
            # in, as published.
            below = torch.where(sigmas > 1 - 1e-5, self.sigmas_N1[1], sigmas)
            spreads = noise.level * (sigmas / (1 - below)).sqrt()
        else:
            spreads = torch.tensor(noise.table or [noise.level] * self.steps)
        return replace(self, transition=SDE(spreads), storage=storage)

    def without_noise(self) -> "Flow":
        return replace(self, transition=euler)

    def model_time(self, i_B: torch.Tensor) -> torch.Tensor:
        times = self.sigmas_N1.to(i_B.device)[i_B] * self.time_scale
        return times.floor() if self.whole_times else times

    def step(self, x, prediction, i_B, noise=None, next=None) -> Step:
        x, velocity = full_precision(x), full_precision(prediction)
        sigmas = self.sigmas_N1.to(x.device)
        sigma, after = expand_like(sigmas[i_B], x), expand_like(sigmas[i_B + 1], x)
        mean, std, dt = self.transition(x, velocity, i_B, sigma, after)
        return gaussian_step(mean, std, dt, x - sigma * velocity, noise, next, self.storage)

    def to_x0(self, x, prediction, i_B) -> torch.Tensor:
        sigma = expand_like(self.sigmas_N1.to(x.device)[i_B], x)
        return full_precision(x) - sigma * full_precision(prediction)

    def add_noise(self, x0, noise, time_B) -> torch.Tensor:
        sigma = expand_like(time_B / self.time_scale, x0)
        return (1 - sigma) * x0 + sigma * noise

    def target(self, x0, noise, time_B) -> torch.Tensor:
        return noise - x0

    def draw_times(self, count: int, generator: torch.Generator) -> torch.Tensor:
        even = torch.randn(count, generator=generator).sigmoid()
        return self.shift * even / (1 + (self.shift - 1) * even) * self.time_scale

    def min_snr_weights(self, time_B: torch.Tensor, gamma: float) -> torch.Tensor:
        """Refused: a flow model's weights are in how its times are drawn."""
        raise InputError(
            f"min_snr_gamma={gamma}: flow models draw their training times unevenly instead; expected null"
        )
