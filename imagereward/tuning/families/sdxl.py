"""Stable Diffusion XL: a U-Net with two text encoders, a pooled embedding, and the image's size as inputs."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from imagereward.precision import full_precision
from imagereward.tuning.data.image_size import Resolution
from imagereward.tuning.data.requests import Row, prompts_of
from imagereward.tuning.families.autoencoder import image_size, open_autoencoder
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.families.guidance import refuse_embedded_guidance, with_guidance
from imagereward.tuning.families.text import FIXED_LENGTH, Text, tokenize
from imagereward.tuning.sampling.diffusion import Diffusion


class SDXLDenoiser:
    """A StableDiffusionXLPipeline as a Denoiser (`families.base`).

    pipeline    the diffusers pipeline
    resolution  of the images in pixels: one number, or (height, width), multiples of 8 with SDXL's
                autoencoder; default: the U-Net's own size

    `predict` gives epsilon, v or x0, by the scheduler's prediction_type, at a training time of 0 to 999.
    Raises InputError for a U-Net with embedded guidance and for a size that is no such multiple.
    """

    text_sequences = FIXED_LENGTH
    blocks = ("BasicTransformerBlock", "ResnetBlock2D")
    lora_targets = ("to_k", "to_out.0", "to_q", "to_v")

    def __init__(self, pipeline, resolution: Resolution | None = None):
        self.pipeline, self.network = pipeline, pipeline.unet
        refuse_embedded_guidance(self.network)
        self.module = self.network
        self.resolution = image_size(resolution, self.network.config.sample_size, pipeline.vae)
        self.autoencoder = open_autoencoder(pipeline.vae, self.resolution)
        self.text: Text = self._encode_text
        for encoder in self._encoders:
            encoder.requires_grad_(False).eval()

    @property
    def frozen(self) -> list[torch.nn.Module]:
        return [self.pipeline.vae, *self._encoders]

    @property
    def inputs(self) -> tuple[str, ...]:
        return ()

    def dynamics(self, steps: int) -> Diffusion:
        return Diffusion.like(self.pipeline.scheduler, steps)

    def encode(self, rows: Sequence[Row]) -> Condition:
        """Hidden states [B, 77, D1 + D2] of both encoders, the second's pooled embedding [B, D2], time ids.

        The hidden states are those of the last layer but one. Time ids [B, 6] are (height, width) of the
        original image, (top, left) of the crop and (height, width) of the target, in pixels: here those of
        an uncropped image of the size that is trained (Podell et al. 2023, arXiv:2307.01952, section 2.2).
        """
        sizes = torch.tensor([[*self.resolution, 0, 0, *self.resolution]]).repeat(len(rows), 1)
        return Condition({**self.text(prompts_of(rows)), "time_ids": sizes}).to(self.autoencoder.vae.device)

    def predict(
        self, x: torch.Tensor, time_B: torch.Tensor, condition: Condition, guidance: float = 1.0
    ) -> torch.Tensor:
        return with_guidance(self._forward, x, time_B, condition, lambda: self.unprompted, guidance)

    @cached_property
    def unprompted(self) -> Condition:
        """The condition without a prompt; zeros where the pipeline has force_zeros_for_empty_prompt."""
        tensors = self.text([""])
        if self.pipeline.config.get("force_zeros_for_empty_prompt", False):
            tensors = {name: torch.zeros_like(value) for name, value in tensors.items()}
        return Condition(tensors).to(self.autoencoder.vae.device)

    def _encode_text(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        hidden: list[torch.Tensor] = []
        for tokenizer, encoder in zip(self._tokenizers, self._encoders, strict=True):
            tokens = tokenize(tokenizer, prompts).input_ids
            with torch.no_grad():
                output = encoder(tokens.to(encoder.device), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        return {"encoder_hidden_states": torch.cat(hidden, -1), "text_embeds": output.text_embeds}

    @property
    def _tokenizers(self) -> tuple[Any, Any]:
        return self.pipeline.tokenizer, self.pipeline.tokenizer_2

    @property
    def _encoders(self) -> tuple[Any, Any]:
        return self.pipeline.text_encoder, self.pipeline.text_encoder_2

    def _forward(self, x: torch.Tensor, time_B: torch.Tensor, condition: Condition) -> torch.Tensor:
        dtype = self.network.dtype
        tensors = dict(condition.to(dtype).tensors)
        hidden = tensors.pop("encoder_hidden_states")
        output = self.module(x.to(dtype), time_B, hidden, added_cond_kwargs=tensors, return_dict=False)
        return full_precision(output[0])
