"""Stable Diffusion XL: two text encoders, a pooled embedding, and the picture's size as a condition."""

from collections.abc import Sequence
from functools import cached_property

import torch

from imagereward.precision import full_precision
from imagereward.tuning.data.requests import Row, prompts_of
from imagereward.tuning.families.autoencoder import KLAutoencoder
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.families.guidance import refuse_embedded_guidance, with_guidance
from imagereward.tuning.families.text import Text, tokenize
from imagereward.tuning.sampling.diffusion import Diffusion


class SDXLDenoiser:
    """A StableDiffusionXLPipeline as what objectives ask for; see `denoisers.Denoiser`."""

    lora_targets = ("to_k", "to_out.0", "to_q", "to_v")

    def __init__(self, pipeline, resolution: int | None = None):
        self.pipeline, self.network = pipeline, pipeline.unet
        refuse_embedded_guidance(self.network)
        self.module = self.network
        downscale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        self.resolution = resolution or self.network.config.sample_size * downscale
        self.autoencoder = KLAutoencoder(pipeline.vae, self.resolution)
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
        """Both encoders' last hidden states but one, side by side, the second's pooled embedding, and sizes.

        The sizes are those of an uncropped picture at the resolution that is trained: original, crop, target.
        """
        side = self.resolution
        sizes = torch.tensor([[side, side, 0, 0, side, side]]).repeat(len(rows), 1)
        return Condition({**self.text(prompts_of(rows)), "time_ids": sizes}).to(self.autoencoder.vae.device)

    def predict(self, x, time_B, condition: Condition, guidance: float = 1.0) -> torch.Tensor:
        return with_guidance(self._forward, x, time_B, condition, lambda: self._nothing, guidance)

    @cached_property
    def _nothing(self) -> Condition:
        nothing = self.text([""])
        if self.pipeline.config.get("force_zeros_for_empty_prompt", False):
            nothing = {name: torch.zeros_like(value) for name, value in nothing.items()}
        return Condition(nothing).to(self.autoencoder.vae.device)

    def _encode_text(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        hidden: list[torch.Tensor] = []
        for tokenizer, encoder in zip(self._tokenizers, self._encoders, strict=True):
            tokens = tokenize(tokenizer, prompts).input_ids
            with torch.no_grad():
                output = encoder(tokens.to(encoder.device), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        return {"encoder_hidden_states": torch.cat(hidden, -1), "text_embeds": output.text_embeds}

    @property
    def _tokenizers(self):
        return self.pipeline.tokenizer, self.pipeline.tokenizer_2

    @property
    def _encoders(self):
        return self.pipeline.text_encoder, self.pipeline.text_encoder_2

    def _forward(self, x, time_B, condition: Condition):
        dtype = self.network.dtype
        tensors = dict(condition.to(dtype).tensors)
        hidden = tensors.pop("encoder_hidden_states")
        output = self.module(x.to(dtype), time_B, hidden, added_cond_kwargs=tensors, return_dict=False)
        return full_precision(output[0])
