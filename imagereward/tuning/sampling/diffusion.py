"""Diffusion models: variance-preserving noise in discrete time, with DDIM and DDPM steps.

x_t = sqrt(alpha_t) x0 + sqrt(1 - alpha_t) epsilon, where alpha_t is the product of the alphas up to training
time t (Ho et al. 2020, arXiv:2006.11239, equation 4; their alpha-bar). Symbols are in `sampling.base`.
"""

from dataclasses import dataclass, replace
from typing import get_args

import torch

from imagereward.errors import InputError
from imagereward.precision import full_precision
from imagereward.tuning.sampling.base import (
    Noise,
    Prediction,
    Step,
    expand_like,
    gaussian_step,
    warn_of_ignored,
)


@dataclass(frozen=True)
class Diffusion:
    """Variance-preserving diffusion with DDIM's steps (Song et al. 2021, arXiv:2010.02502, equation 12).

    alphas_T    products of alphas, in (0, 1), one for every training time 0..T-1
    times_N     the sampling grid: training times, descending
    prediction  what the network predicts: "epsilon", "v_prediction" or "sample" (x0)
    eta         0: deterministic steps; 1: steps with DDPM's variance
    final_alpha the product of alphas after the last step
    storage     dtype that new samples are rounded to; None: not rounded
    """

    alphas_T: torch.Tensor
    times_N: torch.Tensor
    prediction: Prediction = "epsilon"
    eta: float = 0.0
    final_alpha: float = 1.0
    storage: torch.dtype | None = None

    @classmethod
    def like(cls, scheduler, steps: int, eta: float = 0.0) -> "Diffusion":
        """The noise and the grid of a diffusers scheduler of any variance-preserving kind.

        scheduler  its config decides: alphas, prediction_type, timestep_spacing, steps_offset
        steps      of the grid, 1 to the scheduler's num_train_timesteps
        eta        0 is deterministic, 1 has DDPM's variance

        Times are spaced as DDIMScheduler spaces them, and a step leads to the next time of the grid.
        diffusers' DDIM goes T // steps down from each time instead, which differs for the spacings "trailing"
        and "linspace" where `steps` does not divide T; these steps then agree with diffusers' DDPM.
        Raises InputError for another kind of noise or prediction, or a number of steps out of range. Warns
        with IgnoredOptionWarning of options that clip x0, which these steps do not.
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
            raise InputError(f"noise.kind={noise.kind!r}: this is no flow model, and takes 'ddim'")
        return replace(self, eta=noise.level, storage=storage)

    def without_noise(self) -> "Diffusion":
        return replace(self, eta=0.0)

    def model_time(self, i_B: torch.Tensor) -> torch.Tensor:
        return self.times_N.to(i_B.device)[i_B]

    def step(
        self,
        x: torch.Tensor,
        prediction: torch.Tensor,
        i_B: torch.Tensor,
        noise: torch.Tensor | None = None,
        next: torch.Tensor | None = None,
    ) -> Step:
        x, prediction = full_precision(x), full_precision(prediction)
        alphas = self.alphas_T.to(x.device)
        alpha = expand_like(alphas[self.model_time(i_B)], x)
        later = self.model_time((i_B + 1).clamp(max=self.steps - 1))
        after = torch.where(i_B + 1 < self.steps, alphas[later], alphas.new_tensor(self.final_alpha))
        after = expand_like(after, x)
        x0, epsilon = self._x0_and_epsilon(x, prediction, alpha)
        std = self.eta * ((1 - after) / (1 - alpha) * (1 - alpha / after)).clamp(min=0).sqrt()
        mean = after.sqrt() * x0 + (1 - after - std**2).clamp(min=0).sqrt() * epsilon
        return gaussian_step(mean, std, torch.ones_like(std), x0, noise, next, self.storage)

    def to_x0(self, x: torch.Tensor, prediction: torch.Tensor, i_B: torch.Tensor) -> torch.Tensor:
        return self.x0_at(x, prediction, self.model_time(i_B))

    def x0_at(self, x: torch.Tensor, prediction: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
        alpha = expand_like(self.alphas_T.to(x.device)[time_B], x)
        return self._x0_and_epsilon(full_precision(x), full_precision(prediction), alpha)[0]

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
        alpha = expand_like(self.alphas_T.to(x0.device)[time_B], x0)
        return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return x0
        alpha = expand_like(self.alphas_T.to(x0.device)[time_B], x0)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * x0

    def draw_times(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(len(self.alphas_T), (count,), generator=generator)

    def times_at(self, share_B: torch.Tensor) -> torch.Tensor:
        last = len(self.alphas_T) - 1
        return (share_B * last).round().long().clamp(0, last)

    def share_of(self, time_B: torch.Tensor) -> torch.Tensor:
        return time_B.float() / (len(self.alphas_T) - 1)

    def min_snr_weights(self, time_B: torch.Tensor, gamma: float) -> torch.Tensor:
        """Loss weights [B] of the prediction's squared error, so that an error of x0 weighs min(SNR, gamma).

        With SNR = alpha / (1 - alpha): min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v,
        min(SNR, gamma) for x0 (Hang et al. 2023, arXiv:2303.09556).
        """
        alpha = self.alphas_T.to(time_B.device)[time_B]
        snr = alpha / (1 - alpha)
        # An error of epsilon is sqrt(SNR) times that of x0; an error of v is sqrt(SNR + 1) times.
        per_x0 = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
        return snr.clamp(max=gamma) / per_x0[self.prediction]

    def _x0_and_epsilon(
        self, x: torch.Tensor, prediction: torch.Tensor, alpha: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x0, epsilon) that the prediction at x implies."""
        if self.prediction == "epsilon":
            return (x - (1 - alpha).sqrt() * prediction) / alpha.sqrt(), prediction
        if self.prediction == "sample":
            return prediction, (x - alpha.sqrt() * prediction) / (1 - alpha).sqrt()
        x0 = alpha.sqrt() * x - (1 - alpha).sqrt() * prediction
        return x0, alpha.sqrt() * prediction + (1 - alpha).sqrt() * x
