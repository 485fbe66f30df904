"""Denoiser: a text-to-image pipeline as the objectives see it, whatever its family."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from imagereward.tuning.data.requests import Row
from imagereward.tuning.families.autoencoder import KLAutoencoder
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.families.text import Text
from imagereward.tuning.sampling.base import Dynamics


class Denoiser(Protocol):
    """A family's pipeline, seen from training.

    pipeline    diffusers' own, whose modules these are
    network     the network that can learn, bare
    module      the same as it is called: replaced when DDP or FSDP wraps it
    autoencoder  encodes images to latents and decodes them; `autoencoder.shape` is that of one sample
    resolution  of the images, in pixels
    text        prompts to what of the condition they decide; a cache may stand in for it
    inputs      the pictures that a row must bring: "image", "mask"
    frozen      the modules that never learn
    """

    pipeline: Any
    network: Any
    module: torch.nn.Module
    autoencoder: KLAutoencoder
    resolution: int
    text: Text
    lora_targets: Sequence[str]

    @property
    def inputs(self) -> tuple[str, ...]:
        """What a row must bring beside its prompt."""

    @property
    def frozen(self) -> list[torch.nn.Module]:
        """Text encoders and the autoencoder."""

    def dynamics(self, steps: int) -> Dynamics:
        """The pipeline's noise on a sampling grid of so many steps, deterministic."""

    def encode(self, rows: Sequence[Row]) -> Condition:
        """What the network needs to know of these rows: prompts, with pictures where `inputs` asks for them.

        Raises InputError for a picture that is missing, or a mask that is not of its image's size.
        """

    def predict(self, x, time_B, condition: Condition, guidance: float = 1.0) -> torch.Tensor:
        """The network's float32 output at x [B, C, h, w] and times [B]."""
