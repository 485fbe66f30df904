"""Stable Diffusion 1.x and 2.x, as diffusers builds them: a U-Net, an autoencoder, a CLIP text encoder."""

from collections.abc import Sequence
from functools import cached_property

import torch

from imagereward.images import full_precision
from imagereward.tuning.denoisers.condition import Condition
from imagereward.tuning.denoisers.guidance import guided
from imagereward.tuning.denoisers.latents import Latents
from imagereward.tuning.dynamics import Diffusion


class SDDenoiser:
    """A StableDiffusionPipeline as what objectives ask for; see `denoisers.Denoiser`."""

    lora_targets = ("to_k", "to_out.0", "to_q", "to_v")

    def __init__(self, pipeline, resolution: int | None = None):
        self.pipeline, self.network = pipeline, pipeline.unet
        self.module = self.network
        downscale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        self.resolution = resolution or self.network.config.sample_size * downscale
        self.latents = Latents(pipeline.vae, self.resolution)
        pipeline.text_encoder.requires_grad_(False).eval()

    @property
    def frozen(self) -> list[torch.nn.Module]:
        return [self.pipeline.vae, self.pipeline.text_encoder]

    def dynamics(self, steps: int, eta: float = 0.0) -> Diffusion:
        return Diffusion.like(self.pipeline.scheduler, steps, eta)

    def encode(self, prompts: Sequence[str]) -> Condition:
        """The text encoder's last hidden states [B, 77, D]; prompts beyond 77 tokens are cut."""
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        )
        mask = tokens.attention_mask.to(encoder.device)
        masked = getattr(encoder.config, "use_attention_mask", False)  # Stable Diffusion's are not
        with torch.no_grad():
            hidden = encoder(tokens.input_ids.to(encoder.device), attention_mask=mask if masked else None)[0]
        return Condition({"encoder_hidden_states": hidden})

    def predict(self, x, time_B, condition: Condition, guidance: float = 1.0) -> torch.Tensor:
        return guided(self._forward, x, time_B, condition, lambda: self._nothing, guidance)

    @cached_property
    def _nothing(self) -> Condition:
        return self.encode([""])

    def _forward(self, x, time_B, condition: Condition):
        dtype = self.network.dtype
        output = self.module(x.to(dtype), time_B, **condition.to(dtype).tensors, return_dict=False)
        return full_precision(output[0])
