"""Stable Diffusion XL: two text encoders, a pooled embedding, and the picture's size as a condition."""

from collections.abc import Sequence
from functools import cached_property

import torch

from imagereward.images import full_precision
from imagereward.tuning.denoisers.condition import Condition
from imagereward.tuning.denoisers.guidance import guided
from imagereward.tuning.denoisers.latents import Latents
from imagereward.tuning.dynamics import Diffusion


class SDXLDenoiser:
    """A StableDiffusionXLPipeline as what objectives ask for; see `denoisers.Denoiser`."""

    lora_targets = ("to_k", "to_out.0", "to_q", "to_v")

    def __init__(self, pipeline, resolution: int | None = None):
        self.pipeline, self.network = pipeline, pipeline.unet
        self.module = self.network
        downscale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        self.resolution = resolution or self.network.config.sample_size * downscale
        self.latents = Latents(pipeline.vae, self.resolution)
        for encoder in self._encoders:
            encoder.requires_grad_(False).eval()

    @property
    def frozen(self) -> list[torch.nn.Module]:
        return [self.pipeline.vae, *self._encoders]

    def dynamics(self, steps: int, eta: float = 0.0) -> Diffusion:
        return Diffusion.like(self.pipeline.scheduler, steps, eta)

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Both encoders' last hidden states but one, side by side, the second's pooled embedding, and sizes.

        The sizes are those of an uncropped picture at the resolution that is trained: original, crop, target.
        """
        hidden: list[torch.Tensor] = []
        for tokenizer, encoder in zip(self._tokenizers, self._encoders, strict=True):
            tokens = tokenizer(
                list(prompts),
                padding="max_length",
                truncation=True,
                max_length=tokenizer.model_max_length,
                return_tensors="pt",
            )
            with torch.no_grad():
                output = encoder(tokens.input_ids.to(encoder.device), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        side = self.resolution
        sizes = torch.tensor([[side, side, 0, 0, side, side]], device=hidden[0].device, dtype=hidden[0].dtype)
        return Condition(
            {
                "encoder_hidden_states": torch.cat(hidden, -1),
                "text_embeds": output.text_embeds,
                "time_ids": sizes.repeat(len(prompts), 1),
            }
        )

    def predict(self, x, time_B, condition: Condition, guidance: float = 1.0) -> torch.Tensor:
        return guided(self._forward, x, time_B, condition, lambda: self._nothing, guidance)

    @cached_property
    def _nothing(self) -> Condition:
        nothing = self.encode([""])
        if self.pipeline.config.get("force_zeros_for_empty_prompt", False):
            zeros = {name: torch.zeros_like(value) for name, value in nothing.tensors.items()}
            nothing = Condition({**zeros, "time_ids": nothing.tensors["time_ids"]})
        return nothing

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
