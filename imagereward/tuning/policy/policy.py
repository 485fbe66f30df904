"""Policy: an image generator as objectives use it, with snapshots of its weights."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

import torch

from imagereward.errors import InputError
from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.policy.snapshots import Snapshot, evaluating
from imagereward.tuning.sampling.base import Dynamics

# The network's own weights, by the name that `using` takes.
CURRENT = "current"


class Learner(Protocol):
    """What the trainer asks of what it trains.

    module     the network as it is called. The trainer replaces it by a wrapped one, for several processes
    snapshots  copies of its trainable weights by name, which the trainer saves and restores
    """

    module: torch.nn.Module
    snapshots: dict[str, Snapshot]


class Policy:
    """A denoiser with the dynamics and the guidance that it is trained with.

    denoiser   the family's network with its text encoders and autoencoder
    dynamics   the sampling grid and its noise; `i_B` are indices [B] on the grid, from 0
    guidance   scale of classifier-free guidance; 1 and below is none
    snapshots  copies of the trainable weights by name. "reference" is the network at the start of training,
               "ema" a moving average of it; objectives may add others and move them in `end_update`
    """

    def __init__(
        self,
        denoiser: Denoiser,
        dynamics: Dynamics,
        guidance: float = 1.0,
        snapshots: dict[str, Snapshot] | None = None,
    ):
        self.denoiser, self.dynamics, self.guidance = denoiser, dynamics, guidance
        self.snapshots = {} if snapshots is None else snapshots

    @property
    def module(self) -> torch.nn.Module:
        """The network as it is called: wrapped by accelerate in training, bare otherwise."""
        return self.denoiser.module

    @module.setter
    def module(self, module: torch.nn.Module) -> None:
        """Call this module instead, which wraps the network."""
        self.denoiser.module = module

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return next(self.denoiser.network.parameters()).device

    def predict(self, x, i_B: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The network's float32 output [B, C, h, w] at latents x and grid indices [B], with the guidance."""
        return self.denoiser.predict(x, self.dynamics.model_time(i_B), condition, self.guidance)

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Within, the network predicts with the weights of a snapshot: without gradient, in eval mode.

        "current" are its own weights. The network is called as in training, so in the same precision. May
        stand between a forward pass with gradient and its backward pass. Raises InputError for a snapshot
        that is not there.
        """
        if name != CURRENT and name not in self.snapshots:
            raise InputError(f"snapshot {name!r}: expected one of {[CURRENT, *self.snapshots]}")
        weights = contextlib.nullcontext()
        if name != CURRENT:
            weights = self.snapshots[name].in_place_of(self.denoiser.network)  # type: ignore[assignment]
        with torch.no_grad(), evaluating(self.module), weights:
            yield

    @torch.no_grad()
    def sample(self, condition: Condition, noise: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [0, 1] from noise [B, C, h, w], by all steps of the grid, deterministic."""
        dynamics = self.dynamics.without_noise()
        x, rows = noise, torch.zeros(len(noise), dtype=torch.long, device=noise.device)
        for i in range(dynamics.steps):
            x = dynamics.step(x, self.predict(x, rows + i, condition), rows + i).next
        return self.denoiser.autoencoder.decode(x)
