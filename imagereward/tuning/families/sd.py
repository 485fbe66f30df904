"""Stable Diffusion 1.x and 2.x, and inpainting: a U-Net, an autoencoder, a CLIP text encoder."""

from collections.abc import Sequence
from functools import cached_property

import torch

from imagereward.errors import InputError
from imagereward.precision import full_precision
from imagereward.tuning.data.requests import Row, prompts_of
from imagereward.tuning.families.autoencoder import KLAutoencoder
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.families.guidance import refuse_embedded_guidance, with_guidance
from imagereward.tuning.families.image_conditioning import LATENT_MASK, TEXT_ONLY, ImageConditioning
from imagereward.tuning.families.text import Text, tokenize
from imagereward.tuning.sampling.diffusion import Diffusion

# Latents, a mask, and the latents of the masked image.
INPAINTING_CHANNELS = 9


class SDDenoiser:
    """A StableDiffusionPipeline as what objectives ask for; see `denoisers.Denoiser`."""

    lora_targets = ("to_k", "to_out.0", "to_q", "to_v")

    def __init__(self, pipeline, resolution: int | None = None, pictures: ImageConditioning = TEXT_ONLY):
        self.pipeline, self.network, self.pictures = pipeline, pipeline.unet, pictures
        refuse_embedded_guidance(self.network)
        self.module = self.network
        downscale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        self.resolution = resolution or self.network.config.sample_size * downscale
        self.autoencoder = KLAutoencoder(pipeline.vae, self.resolution)
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
        """The text encoder's last hidden states [B, 77, D], longer prompts cut, and the pictures."""
        shown = self.pictures(rows, self.autoencoder, self.resolution)
        return Condition(self.text(prompts_of(rows)) | shown).to(self.autoencoder.vae.device)

    def predict(self, x, time_B, condition: Condition, guidance: float = 1.0) -> torch.Tensor:
        return with_guidance(self._forward, x, time_B, condition, lambda: self._nothing, guidance)

    @cached_property
    def _nothing(self) -> Condition:
        return Condition(self.text([""])).to(self.autoencoder.vae.device)

    def _encode_text(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        encoder = self.pipeline.text_encoder
        tokens = tokenize(self.pipeline.tokenizer, prompts)
        mask = tokens.attention_mask.to(encoder.device)
        masked = getattr(encoder.config, "use_attention_mask", False)  # Stable Diffusion's are not
        with torch.no_grad():
            hidden = encoder(tokens.input_ids.to(encoder.device), attention_mask=mask if masked else None)[0]
        return {"encoder_hidden_states": hidden}

    def _forward(self, x, time_B, condition: Condition):
        dtype = self.network.dtype
        tensors = dict(condition.to(dtype).tensors)
        channels = tensors.pop("channels", None)
        shown = x.to(dtype) if channels is None else torch.cat([x.to(dtype), channels], 1)
        return full_precision(self.module(shown, time_B, **tensors, return_dict=False)[0])


def inpainting(pipeline, resolution: int | None = None) -> SDDenoiser:
    """A StableDiffusionInpaintPipeline. Raises InputError for a U-Net that is not shown the mask."""
    channels = pipeline.unet.config.in_channels
    if channels != INPAINTING_CHANNELS:
        raise InputError(
            f"the U-Net takes {channels} channels; one for inpainting takes {INPAINTING_CHANNELS}: latents, "
            "a mask, and the latents of the masked image"
        )
    return SDDenoiser(pipeline, resolution, LATENT_MASK)
