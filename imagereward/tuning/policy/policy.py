"""Policy: the image generator that an objective trains, with snapshots of its weights."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch

from imagereward.errors import InputError
from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.families.guidance import takes_guidance
from imagereward.tuning.policy.snapshots import Snapshot, evaluating
from imagereward.tuning.sampling.base import Dynamics

# The name by which `using` takes the network's own weights instead of a snapshot's.
CURRENT = "current"
# The snapshot of the network before training, for sampling by both.
BASE = "base"


class Learner(Protocol):
    """The attributes that the trainer needs of the object that it trains.

    module     the network. The trainer replaces it by accelerate's wrapper, which joins several processes
    snapshots  copies of the trainable weights by name; the trainer saves and restores them
    """

    module: torch.nn.Module
    snapshots: dict[str, Snapshot]


class Hybrid(NamedTuple):
    """Sampling whose first steps are the tuned network's, and whose others are the base's.

    The first steps decide what is in an image, the last ones its texture, where a reward's weaknesses are
    exploited most. Li et al. 2025, arXiv:2507.21802 (MixGRPO's hybrid inference).

    share  of the steps, 0..1, that the tuned network takes, rounded to whole steps
    base   makes a context in which the policy predicts as the base does
    """

    share: float
    base: Callable[[], contextlib.AbstractContextManager]


class Policy:
    """A denoiser with the sampling grid and the guidance that training uses.

    denoiser   the family's network with its text encoders and autoencoder
    dynamics   the sampling grid and its noise; `i_B` are indices [B] on the grid, from 0
    guidance   scale of classifier-free guidance; 1 and below is none
    snapshots  copies of the trainable weights by name, listed in `policy/snapshots.py`: "reference" is the
               network before training, unless the objective replaces it; "ema" is the moving average of the
               weights that learn. Objectives may add others and move them in `end_update`
    hybrid     how `sample` divides the steps between this network and the base; None: it takes all
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
        self.hybrid: Hybrid | None = None

    @property
    def module(self) -> torch.nn.Module:
        """The module to call for a forward pass: accelerate's wrapper in training, else the network."""
        return self.denoiser.module

    @module.setter
    def module(self, module: torch.nn.Module) -> None:
        """Predict through `module`, a wrapper of the network."""
        self.denoiser.module = module

    @property
    def device(self) -> torch.device:
        """The device that computes: the autoencoder's, since offloaded weights are in the host's memory."""
        return self.denoiser.autoencoder.vae.device

    def predict(self, x, i_B: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The network's output with guidance, [B, C, h, w] float32.

        x     latents [B, C, h, w]
        i_B   indices of the steps on the sampling grid, 0..steps - 1
        """
        return self.denoiser.predict(x, self.dynamics.model_time(i_B), condition, self.guidance)

    def predict_at(self, x, time_B: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The network's output for the prompt alone at training times [B], [B, C, h, w] float32.

        Classifier-free guidance is left out, as in the training of generators. A network that was distilled
        for guidance gets the policy's guidance as its input, as in sampling.
        """
        scale = self.guidance if takes_guidance(self.denoiser.network) else 1.0
        return self.denoiser.predict(x, time_B, condition, scale)

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[None]:
        """A context in which the network predicts with a snapshot's weights, without gradient, in eval mode.

        name  a key of `snapshots`, or "current" for the network's own weights

        The precision is that of training. The context may stand between a forward pass with gradient and
        its backward pass. Raises InputError for a name that is not in `snapshots`.
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
        """Images [B, 3, H, W] in [0, 1] from noise [B, C, h, w]: all steps of the grid, deterministic."""
        steps = self.dynamics.steps
        own = steps if self.hybrid is None else int(self.hybrid.share * steps + 0.5)
        x = self._denoise(noise, condition, range(own))
        if self.hybrid is not None:
            with self.hybrid.base():
                x = self._denoise(x, condition, range(own, steps))
        return self.denoiser.autoencoder.decode(x)

    def _denoise(self, x: torch.Tensor, condition: Condition, steps: range) -> torch.Tensor:
        """The latents [B, C, h, w] after these steps of the grid, deterministic."""
        dynamics = self.dynamics.without_noise()
        rows = torch.zeros(len(x), dtype=torch.long, device=x.device)
        for i in steps:
            x = dynamics.step(x, self.predict(x, rows + i, condition), rows + i).next
        return x
