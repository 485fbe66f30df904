"""A generator as objectives use it: a denoiser with its dynamics, guidance and base."""

import contextlib
from collections.abc import Iterator

import torch

from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.policy.snapshots import FrozenCopy
from imagereward.tuning.sampling.base import Dynamics


class Policy:
    """What is trained. `module` is what the loop wraps and steps; `i_B` are indices on the sampling grid."""

    def __init__(
        self, denoiser: Denoiser, dynamics: Dynamics, guidance: float = 1.0, base: FrozenCopy | None = None
    ):
        self.denoiser, self.dynamics, self.guidance, self.base = denoiser, dynamics, guidance, base

    @property
    def module(self) -> torch.nn.Module:
        """The network as it is called, wrapped or bare."""
        return self.denoiser.module

    @module.setter
    def module(self, module: torch.nn.Module) -> None:
        """Put a wrapped one in its place."""
        self.denoiser.module = module

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.denoiser.network.parameters()).device

    def predict(self, x, i_B: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The network's output at x and grid indices [B], under this policy's guidance."""
        return self.denoiser.predict(x, self.dynamics.model_time(i_B), condition, self.guidance)

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Within, predictions are the base's, without gradient. Needs a `base`."""
        assert self.base is not None
        with torch.no_grad(), self.base.in_use():
            yield

    @torch.no_grad()
    def sample(self, condition: Condition, noise: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [0, 1], all steps from this noise, deterministically."""
        dynamics = self.dynamics.without_noise()
        x, rows = noise, torch.zeros(len(noise), dtype=torch.long, device=noise.device)
        for i in range(dynamics.steps):
            x = dynamics.step(x, self.predict(x, rows + i, condition), rows + i).next
        return self.denoiser.autoencoder.decode(x)
