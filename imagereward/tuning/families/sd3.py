"""Stable Diffusion 3 and 3.5: a transformer, and three text encoders of which any may be missing."""

from collections.abc import Sequence
from functools import cached_property

import torch

from imagereward.errors import InputError
from imagereward.precision import full_precision
from imagereward.tuning.data.image_size import Resolution
from imagereward.tuning.data.requests import Row, prompts_of
from imagereward.tuning.families.autoencoder import image_size, open_autoencoder
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.families.guidance import with_guidance
from imagereward.tuning.families.text import FIXED_LENGTH, Text, tokenize
from imagereward.tuning.sampling.flow import Flow

T5_TOKENS = 256
# Tokens of a CLIP where the pipeline has no CLIP tokenizer, whose model_max_length it would be.
CLIP_TOKENS = 77


class SD3Denoiser:
    """A StableDiffusion3Pipeline as a Denoiser (`families.base`).

    pipeline    the diffusers pipeline
    resolution  of the images in pixels: one number, or (height, width), multiples of 16 with SD3's
                autoencoder and patches of 2 x 2 latents; default: the transformer's own size

    `predict` gives the velocity epsilon - x0 at a time of 1000 * sigma.
    Raises InputError for a size that is no such multiple, or beyond the transformer's position embedding.
    """

    text_sequences = FIXED_LENGTH
    blocks = ("JointTransformerBlock",)
    lora_targets = (
        *("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out"),
        *("to_k", "to_out.0", "to_q", "to_v"),
    )

    def __init__(self, pipeline, resolution: Resolution | None = None):
        self.pipeline, self.network = pipeline, pipeline.transformer
        self.module = self.network
        config = self.network.config
        self.resolution = image_size(resolution, config.sample_size, pipeline.vae)
        self.autoencoder = open_autoencoder(pipeline.vae, self.resolution, config.patch_size)
        most = config.pos_embed_max_size * config.patch_size * self.autoencoder.downscale
        if max(self.resolution) > most:
            raise InputError(
                f"resolution={self.resolution.short}: this transformer's position embedding ends at {most} "
                "pixels a side"
            )
        self.text: Text = self._encode_text
        for encoder in self._encoders:
            encoder.requires_grad_(False).eval()

    @property
    def inputs(self) -> tuple[str, ...]:
        return ()

    @property
    def frozen(self) -> list[torch.nn.Module]:
        return [self.pipeline.vae, *self._encoders]

    def dynamics(self, steps: int) -> Flow:
        rows, columns = (side // self.network.config.patch_size for side in self.autoencoder.shape[1:])
        return Flow.like(self.pipeline.scheduler, steps, rows * columns)

    def encode(self, rows: Sequence[Row]) -> Condition:
        """Hidden states [B, 77 + 256, D] of the CLIPs and of T5, and the CLIPs' pooled embeddings [B, D'].

        Where an encoder is missing, its part of the hidden states and of the pooled embedding is 0.
        """
        return Condition(self.text(prompts_of(rows))).to(self.autoencoder.vae.device)

    def predict(
        self, x: torch.Tensor, time_B: torch.Tensor, condition: Condition, guidance: float = 1.0
    ) -> torch.Tensor:
        return with_guidance(self._forward, x, time_B, condition, lambda: self.unprompted, guidance)

    @cached_property
    def unprompted(self) -> Condition:
        """The encoded empty prompt."""
        return Condition(self.text([""])).to(self.autoencoder.vae.device)

    @property
    def _encoders(self) -> list[torch.nn.Module]:
        pipeline = self.pipeline
        every = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3)
        return [encoder for encoder in every if encoder is not None]

    def _encode_text(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        pipeline, config = self.pipeline, self.network.config
        clips = [pipeline.tokenizer, pipeline.tokenizer_2]
        length = next((each.model_max_length for each in clips if each is not None), CLIP_TOKENS)
        like = next((self._encoders or [pipeline.vae])[0].parameters())
        zeros = like.new_zeros(len(prompts), 1, 1)
        words = zeros.repeat(1, length, config.joint_attention_dim)
        room = T5_TOKENS
        if pipeline.tokenizer_3 is not None:
            room = min(room, pipeline.tokenizer_3.model_max_length)
        sentence = zeros.repeat(1, room, config.joint_attention_dim)
        pooled = zeros[:, 0].repeat(1, config.pooled_projection_dim)
        for tokenizer, encoder in zip(clips, (pipeline.text_encoder, pipeline.text_encoder_2), strict=True):
            if encoder is None:
                continue
            tokens = tokenize(tokenizer, prompts, length).input_ids
            with torch.no_grad():
                output = encoder(tokens.to(encoder.device), output_hidden_states=True)
            hidden, whole = output.hidden_states[-2], output.text_embeds
            # The CLIPs lie side by side, each as wide as its pooled embedding, also where one is missing.
            at = 0 if encoder is pipeline.text_encoder else pooled.shape[1] - whole.shape[1]
            words[:, :, at : at + hidden.shape[2]] = hidden
            pooled[:, at : at + whole.shape[1]] = whole
        if pipeline.text_encoder_3 is not None:
            tokens = tokenize(pipeline.tokenizer_3, prompts, room).input_ids
            with torch.no_grad():
                sentence = pipeline.text_encoder_3(tokens.to(like.device))[0]
        return {"encoder_hidden_states": torch.cat([words, sentence], 1), "pooled_projections": pooled}

    def _forward(self, x: torch.Tensor, time_B: torch.Tensor, condition: Condition) -> torch.Tensor:
        dtype = self.network.dtype
        tensors = condition.to(dtype).tensors
        return full_precision(self.module(x.to(dtype), timestep=time_B, **tensors, return_dict=False)[0])
