"""Flow models: straight lines from data to noise, and their steps by the ODE, an SDE or CPS.

x = (1 - sigma) x0 + sigma epsilon, with sigma in [0, 1]; the network predicts the velocity epsilon - x0 and
takes time_scale * sigma as its time (Lipman et al. 2022, arXiv:2210.02747; Esser et al. 2024,
arXiv:2403.03206). A step goes from `sigma` to the smaller `after`. Symbols are in `sampling.base`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from imagereward.errors import InputError
from imagereward.precision import full_precision
from imagereward.tuning.sampling.base import Noise, Step, expand_like, gaussian_step, warn_of_ignored

# (x, velocity, i_B, sigma, after) -> mean [B, C, h, w], standard deviation and dt [B, 1, 1, 1], as in `Step`;
# sigma and after are [B, 1, 1, 1].
Moments = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Transition = Callable[..., Moments]


def euler(
    x: torch.Tensor, velocity: torch.Tensor, i_B: torch.Tensor, sigma: torch.Tensor, after: torch.Tensor
) -> Moments:
    """One Euler step of the flow's ODE: mean = x + (after - sigma) * velocity, without noise."""
    return x + (after - sigma) * velocity, torch.zeros_like(sigma), sigma - after


@dataclass(frozen=True)
class SDE:
    """Steps of a stochastic equation that has the ODE's marginals (Liu et al. 2025, arXiv:2505.05470).

    With dt = after - sigma < 0 and s = sigma_t:
    mean = x (1 + s^2 / (2 sigma) dt) + velocity (1 + s^2 (1 - sigma) / (2 sigma)) dt, std = s sqrt(-dt).

    spreads_N  sigma_t of every step, at least 0; a step whose sigma_t is 0 is Euler's
    """

    spreads_N: torch.Tensor

    def __call__(
        self,
        x: torch.Tensor,
        velocity: torch.Tensor,
        i_B: torch.Tensor,
        sigma: torch.Tensor,
        after: torch.Tensor,
    ) -> Moments:
        spread, dt = expand_like(self.spreads_N.to(x.device)[i_B], x), after - sigma
        drift = spread**2 / (2 * sigma)
        mean = x * (1 + drift * dt) + velocity * (1 + drift * (1 - sigma)) * dt
        return mean, spread * (-dt).sqrt(), -dt


@dataclass(frozen=True)
class CPS:
    """Steps that replace part of the predicted noise by new noise, so that its variance stays after^2.

    std = after sin(level pi / 2), mean = (1 - after) x0 + sqrt(after^2 - std^2) epsilon, with the x0 and
    epsilon that the velocity implies (Wang and Yu 2025, arXiv:2509.05952). Their log-probabilities are
    -|x - mean|^2, without variance and constant; here they are those of the normal distribution, so that
    published clip ranges do not fit.

    level  in [0, 1]: 0 is deterministic, 1 replaces all of the noise
    """

    level: float

    def __call__(
        self,
        x: torch.Tensor,
        velocity: torch.Tensor,
        i_B: torch.Tensor,
        sigma: torch.Tensor,
        after: torch.Tensor,
    ) -> Moments:
        std = after * math.sin(self.level * math.pi / 2)
        x0, epsilon = x - sigma * velocity, x + (1 - sigma) * velocity
        return (1 - after) * x0 + (after**2 - std**2).clamp(min=0).sqrt() * epsilon, std, torch.ones_like(std)


@dataclass(frozen=True)
class Flow:
    """A sampling grid with its kind of steps, and the noise of training.

    sigmas_N1   the grid: sigma before each of the N steps, descending, and the 0 after the last
    time_scale  the network's time is sigma times this number
    shift       training times t in (0, 1), logit-normal, become shift t / (1 + (shift - 1) t), as the grid's
    transition  the kind of steps: `euler`, an SDE or CPS
    storage     dtype that new samples are rounded to; None: not rounded
    whole_times whether the network's times on the grid are rounded down to whole numbers
    """

    sigmas_N1: torch.Tensor
    time_scale: float = 1000.0
    shift: float = 1.0
    transition: Transition = euler
    storage: torch.dtype | None = None
    whole_times: bool = False

    @classmethod
    def like(cls, scheduler, steps: int, tokens: int, even: bool = False) -> "Flow":
        """The grid and the noise of a pipeline's FlowMatchEulerDiscreteScheduler.

        steps   of the grid, 1 to the scheduler's num_train_timesteps
        tokens  number of tokens of a sample (height x width in patches): with use_dynamic_shifting, more
                tokens shift the grid towards noise
        even    True: sigmas from 1 to 1 / steps before shifting, as FLUX's pipeline asks; False: as the
                scheduler spaces them

        Raises InputError for a number of steps out of range and for inverted sigmas. Warns with
        IgnoredOptionWarning of stochastic_sampling, which these steps do not have.
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
        """As many steps on another grid: sigma = shift t / (1 + (shift - 1) t), t evenly from 1 to 0.

        shift        at least 1 moves the grid towards noise; None: the grid as it is
        whole_times  whether the network's times are rounded down to whole numbers, as in DanceGRPO

        The distribution of training times (`draw_times`) stays as it is.
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
            # At sigma = 1 (1 - 1e-5 and above, because of rounding) the denominator would be 0: the second
            # step's is taken, as in Flow-GRPO's code.
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

    def step(
        self,
        x: torch.Tensor,
        prediction: torch.Tensor,
        i_B: torch.Tensor,
        noise: torch.Tensor | None = None,
        next: torch.Tensor | None = None,
    ) -> Step:
        x, velocity = full_precision(x), full_precision(prediction)
        sigmas = self.sigmas_N1.to(x.device)
        sigma, after = expand_like(sigmas[i_B], x), expand_like(sigmas[i_B + 1], x)
        mean, std, dt = self.transition(x, velocity, i_B, sigma, after)
        return gaussian_step(mean, std, dt, x - sigma * velocity, noise, next, self.storage)

    def to_x0(self, x: torch.Tensor, prediction: torch.Tensor, i_B: torch.Tensor) -> torch.Tensor:
        sigma = expand_like(self.sigmas_N1.to(x.device)[i_B], x)
        return full_precision(x) - sigma * full_precision(prediction)

    def x0_at(self, x: torch.Tensor, prediction: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
        return full_precision(x) - expand_like(time_B / self.time_scale, x) * full_precision(prediction)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
        sigma = expand_like(time_B / self.time_scale, x0)
        return (1 - sigma) * x0 + sigma * noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
        return noise - x0

    def draw_times(self, count: int, generator: torch.Generator) -> torch.Tensor:
        even = torch.randn(count, generator=generator).sigmoid()  # logit-normal(0, 1)
        return self.shift * even / (1 + (self.shift - 1) * even) * self.time_scale

    def times_at(self, share_B: torch.Tensor) -> torch.Tensor:
        return share_B * self.time_scale

    def share_of(self, time_B: torch.Tensor) -> torch.Tensor:
        return time_B.float() / self.time_scale

    def min_snr_weights(self, time_B: torch.Tensor, gamma: float) -> torch.Tensor:
        """Raises InputError: flow models weight times by drawing them unevenly (`draw_times`)."""
        raise InputError(
            f"min_snr_gamma={gamma}: flow models draw their training times unevenly instead; expected null"
        )
