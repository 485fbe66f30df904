"""Stable Diffusion 1.x and 2.x, and inpainting: a U-Net, an autoencoder and a CLIP text encoder."""

from collections.abc import Sequence
from functools import cached_property

import torch

from imagereward.errors import InputError
from imagereward.precision import full_precision
from imagereward.tuning.data.image_size import Resolution
from imagereward.tuning.data.requests import Row, prompts_of
from imagereward.tuning.families.autoencoder import image_size, open_autoencoder
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.families.guidance import refuse_embedded_guidance, with_guidance
from imagereward.tuning.families.image_conditioning import LATENT_MASK, TEXT_ONLY, ImageConditioning
from imagereward.tuning.families.text import FIXED_LENGTH, Text, tokenize
from imagereward.tuning.sampling.diffusion import Diffusion

# Latents, a mask, and the latents of the masked image.
INPAINTING_CHANNELS = 9


class SDDenoiser:
    """A StableDiffusionPipeline as a Denoiser (`families.base`).

    pipeline    the diffusers pipeline
    resolution  of the images in pixels: one number, or (height, width), multiples of 8 with Stable
                Diffusion's autoencoder; default: the U-Net's own size
    pictures    how pictures of a row become channels of the U-Net's input; default: none

    `predict` gives epsilon, v or x0, by the scheduler's prediction_type, at a training time of 0 to 999.
    Raises InputError for a U-Net with embedded guidance and for a size that is no such multiple.
    """

    text_sequences = FIXED_LENGTH
    blocks = ("BasicTransformerBlock", "ResnetBlock2D")
    lora_targets = ("to_k", "to_out.0", "to_q", "to_v")

    def __init__(
        self, pipeline, resolution: Resolution | None = None, pictures: ImageConditioning = TEXT_ONLY
    ):
        self.pipeline, self.network, self.pictures = pipeline, pipeline.unet, pictures
        refuse_embedded_guidance(self.network)
        self.module = self.network
        self.resolution = image_size(resolution, self.network.config.sample_size, pipeline.vae)
        self.autoencoder = open_autoencoder(pipeline.vae, self.resolution)
        self.text: Text = self._encode_text
        pipeline.text_encoder.requires_grad_(False).eval()

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.pictures.inputs

    @property
    def frozen(self) -> list[torch.nn.Module]:
        return [self.pipeline.vae, self.pipeline.text_encoder]

    def dynamics(self, steps: int) -> Diffusion:
        return Diffusion.like(self.pipeline.scheduler, steps)

    def encode(self, rows: Sequence[Row]) -> Condition:
        """The text encoder's last hidden states [B, 77, D], longer ones truncated, and encoded pictures."""
        pictures = self.pictures(rows, self.autoencoder, self.resolution)
        return Condition(self.text(prompts_of(rows)) | pictures).to(self.autoencoder.vae.device)

    def predict(
        self, x: torch.Tensor, time_B: torch.Tensor, condition: Condition, guidance: float = 1.0
    ) -> torch.Tensor:
        return with_guidance(self._forward, x, time_B, condition, lambda: self.unprompted, guidance)

    @cached_property
    def unprompted(self) -> Condition:
        """The encoded empty prompt."""
        return Condition(self.text([""])).to(self.autoencoder.vae.device)

    def _encode_text(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        encoder = self.pipeline.text_encoder
        tokens = tokenize(self.pipeline.tokenizer, prompts)
        mask = tokens.attention_mask.to(encoder.device)
        masked = getattr(encoder.config, "use_attention_mask", False)  # not by Stable Diffusion's
        with torch.no_grad():
            hidden = encoder(tokens.input_ids.to(encoder.device), attention_mask=mask if masked else None)[0]
        return {"encoder_hidden_states": hidden}

    def _forward(self, x: torch.Tensor, time_B: torch.Tensor, condition: Condition) -> torch.Tensor:
        dtype = self.network.dtype
        tensors = dict(condition.to(dtype).tensors)
        channels = tensors.pop("channels", None)
        inputs = x.to(dtype) if channels is None else torch.cat([x.to(dtype), channels], 1)
        return full_precision(self.module(inputs, time_B, **tensors, return_dict=False)[0])


def inpainting(pipeline, resolution: Resolution | None = None) -> SDDenoiser:
    """A StableDiffusionInpaintPipeline. Raises InputError for a U-Net that does not take the mask."""
    channels = pipeline.unet.config.in_channels
    if channels != INPAINTING_CHANNELS:
        raise InputError(
            f"the U-Net takes {channels} channels; one for inpainting takes {INPAINTING_CHANNELS}: latents, "
            "a mask, and the latents of the masked image"
        )
    return SDDenoiser(pipeline, resolution, LATENT_MASK)
