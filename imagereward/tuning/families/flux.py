"""FLUX.1 dev, and FLUX.1 Kontext and Fill, which take a picture too; latents are packed into tokens."""

from collections.abc import Sequence
from functools import cached_property

import torch

from imagereward.precision import full_precision
from imagereward.tuning.data.image_size import Resolution
from imagereward.tuning.data.requests import Row, prompts_of
from imagereward.tuning.families.autoencoder import image_size, open_autoencoder
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.families.guidance import takes_guidance, with_guidance
from imagereward.tuning.families.image_conditioning import (
    PIXEL_MASK,
    REFERENCE_IMAGE,
    TEXT_ONLY,
    ImageConditioning,
)
from imagereward.tuning.families.text import FIXED_LENGTH, Text, tokenize
from imagereward.tuning.sampling.flow import Flow

T5_TOKENS = 512
# A token is a square of 2 x 2 latents.
PATCH = 2
# diffusers' transformer takes sigma and multiplies it by 1000 itself; `predict` is given 1000 * sigma.
TIME_SCALE = 1000


class FluxDenoiser:
    """A FluxPipeline as a Denoiser (`families.base`).

    pipeline    the diffusers pipeline
    resolution  of the images in pixels: one number, or (height, width), multiples of 16 with FLUX's
                autoencoder and tokens of 2 x 2 latents; default: the pipeline's own size
    pictures    how pictures of a row become channels or tokens of the transformer's input; default: none

    `predict` gives the velocity epsilon - x0 at a time of 1000 * sigma. Guidance is an input of the network
    where it was distilled to take one (`guidance_embeds`), and classifier-free elsewhere.
    Raises InputError for a size that is no such multiple.
    """

    text_sequences = FIXED_LENGTH
    blocks = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
    lora_targets = (
        *("attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("attn.to_k", "attn.to_out.0", "attn.to_q", "attn.to_v"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )

    def __init__(
        self, pipeline, resolution: Resolution | None = None, pictures: ImageConditioning = TEXT_ONLY
    ):
        self.pipeline, self.network, self.pictures = pipeline, pipeline.transformer, pictures
        self.module = self.network
        self.resolution = image_size(resolution, pipeline.default_sample_size, pipeline.vae)
        self.autoencoder = open_autoencoder(pipeline.vae, self.resolution, PATCH)
        self.text: Text = self._encode_text
        for part in self.frozen:
            part.requires_grad_(False).eval()

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.pictures.inputs

    @property
    def frozen(self) -> list[torch.nn.Module]:
        return [self.pipeline.vae, self.pipeline.text_encoder, self.pipeline.text_encoder_2]

    def dynamics(self, steps: int) -> Flow:
        rows, columns = (side // PATCH for side in self.autoencoder.shape[1:])
        return Flow.like(self.pipeline.scheduler, steps, rows * columns, even=True)

    def encode(self, rows: Sequence[Row]) -> Condition:
        """T5's hidden states [B, 512, D], CLIP's pooled embedding [B, D'], and encoded pictures."""
        pictures = self.pictures(rows, self.autoencoder, self.resolution)
        return Condition(self.text(prompts_of(rows)) | pictures).to(self.autoencoder.vae.device)

    def predict(
        self, x: torch.Tensor, time_B: torch.Tensor, condition: Condition, guidance: float = 1.0
    ) -> torch.Tensor:
        if takes_guidance(self.network):
            return self._forward(x, time_B, condition, x.new_full((len(x),), guidance))
        return with_guidance(self._forward, x, time_B, condition, lambda: self.unprompted, guidance)

    @cached_property
    def unprompted(self) -> Condition:
        """The encoded empty prompt."""
        return Condition(self.text([""])).to(self.autoencoder.vae.device)

    def _encode_text(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        clip, t5 = self.pipeline.text_encoder, self.pipeline.text_encoder_2
        words = tokenize(self.pipeline.tokenizer, prompts, self.pipeline.tokenizer_max_length).input_ids
        sentence = tokenize(self.pipeline.tokenizer_2, prompts, T5_TOKENS).input_ids
        with torch.no_grad():
            return {
                "encoder_hidden_states": t5(sentence.to(t5.device))[0],
                "pooled_projections": clip(words.to(clip.device)).pooler_output,
            }

    def _forward(
        self,
        x: torch.Tensor,
        time_B: torch.Tensor,
        condition: Condition,
        guidance_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        dtype = self.network.dtype
        tensors = dict(condition.to(dtype).tensors)
        channels, beside = tensors.pop("channels", None), tensors.pop("beside", None)
        tokens = pack(x.to(dtype) if channels is None else torch.cat([x.to(dtype), channels], 1))
        places, count = places_of(x, 0), tokens.shape[1]
        if beside is not None:
            tokens = torch.cat([tokens, pack(beside)], 1)
            places = torch.cat([places, places_of(beside, 1)])
        output = self.module(
            hidden_states=tokens,
            timestep=time_B / TIME_SCALE,
            guidance=guidance_B,
            txt_ids=places.new_zeros(tensors["encoder_hidden_states"].shape[1], 3),
            img_ids=places,
            **tensors,
            return_dict=False,
        )[0]
        return full_precision(unpack(output[:, :count], x.shape[-2:]))


def kontext(pipeline, resolution: Resolution | None = None) -> FluxDenoiser:
    """A FluxKontextPipeline: the tokens of the image to change follow those of the sample."""
    return FluxDenoiser(pipeline, resolution, REFERENCE_IMAGE)


def fill(pipeline, resolution: Resolution | None = None) -> FluxDenoiser:
    """A FluxFillPipeline: the masked image's latents and the mask are further channels of the input."""
    return FluxDenoiser(pipeline, resolution, PIXEL_MASK)


def pack(x_B_C_h_w: torch.Tensor) -> torch.Tensor:
    """Latents to tokens [B, h/2 * w/2, 4 C], row by row: a token for every 2 x 2 latents."""
    return torch.nn.functional.pixel_unshuffle(x_B_C_h_w, PATCH).flatten(2).transpose(1, 2)


def unpack(tokens_B_T_D: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The inverse of `pack`: tokens to latents [B, D / 4, h, w], for size = (h, w)."""
    patches = tokens_B_T_D.transpose(1, 2).unflatten(2, (size[0] // PATCH, size[1] // PATCH))
    return torch.nn.functional.pixel_shuffle(patches, PATCH)


def places_of(x_B_C_h_w: torch.Tensor, picture: int) -> torch.Tensor:
    """Position ids float32 [h/2 * w/2, 3] of a picture's tokens: (picture, row, column).

    `picture` is 0 for the sample and 1 for a picture beside it.
    """
    rows, columns = (size // PATCH for size in x_B_C_h_w.shape[-2:])
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2)
    places = torch.cat([torch.full((len(grid), 1), picture), grid], 1)
    return places.to(x_B_C_h_w.device, torch.float32)
