"""Denoiser: a text-to-image pipeline as the objectives see it, whatever its family."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from imagereward.tuning.data.image_size import ImageSize
from imagereward.tuning.data.requests import Row
from imagereward.tuning.families.autoencoder import Autoencoder
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.families.text import Text
from imagereward.tuning.sampling.base import Dynamics


class Denoiser(Protocol):
    """A family's pipeline, seen from training.

    pipeline        the diffusers pipeline, whose modules are trained and saved
    network         the U-Net or transformer that can be trained, bare
    module          the same network as it is called; DDP or FSDP puts its wrapper here
    autoencoder     encodes images to latents and decodes them; `autoencoder.shape` is (C, h, w) of one sample
    resolution      height and width of the images in pixels
    text            prompts -> the tensors of the condition that depend on the prompt alone; a cache of
                    embeddings can be put in its place
    text_sequences  which of these tensors are sequences of a length that varies, with their masks, as in
                    `Condition.sequences`; empty where every prompt is padded to one length
    blocks          class names of the network's repeated modules, which sharding gathers one at a time
    lora_targets    suffixes of the names of the linear layers that get low-rank adapters
    """

    pipeline: Any
    network: Any
    module: torch.nn.Module
    autoencoder: Autoencoder
    resolution: ImageSize
    text: Text
    text_sequences: Mapping[str, str]
    blocks: Sequence[str]
    lora_targets: Sequence[str]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The pictures that a row must bring beside its prompt: "image", "mask", or none."""

    @property
    def frozen(self) -> list[torch.nn.Module]:
        """The modules that are never trained: the autoencoder and the text encoders."""

    def dynamics(self, steps: int) -> Dynamics:
        """The noise that the pipeline was trained with, on a sampling grid of `steps` deterministic steps."""

    def encode(self, rows: Sequence[Row]) -> Condition:
        """The condition of B rows: their encoded prompts, and pictures where `inputs` asks for them.

        Its tensors [B, ...] are named as the network's arguments and lie on the autoencoder's device.
        Raises InputError for a picture that is missing, or a mask that is not of its image's size.
        """

    @property
    def unprompted(self) -> Condition:
        """A row of the tensors that depend on the prompt, of a sample without one, as guidance uses it.

        It is on the autoencoder's device.
        """

    def predict(
        self, x: torch.Tensor, time_B: torch.Tensor, condition: Condition, guidance: float = 1.0
    ) -> torch.Tensor:
        """The network's prediction at noisy latents, float32 [B, C, h, w]; gradients reach weights and x.

        x          noisy latents [B, C, h, w], unscaled, as `Dynamics.add_noise` and `Dynamics.step` make them
        time_B     the noise level [B] as `Dynamics.model_time` gives it, the larger the noisier: the
                   index of a training time, 0 to 999, for diffusion models; 1000 * sigma for flow models
        condition  of the same B rows
        guidance   scale of classifier-free guidance; 1 and below is none. A model that was distilled for
                   guidance takes the number as an input instead

        Predicted is, for diffusion models, what the scheduler's prediction_type names: the noise epsilon
        ("epsilon"), the clean latents x0 ("sample") or v = sqrt(alpha) epsilon - sqrt(1 - alpha) x0
        ("v_prediction"); for flow models the velocity epsilon - x0. `Dynamics` turns it into a step.
        """
