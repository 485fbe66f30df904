"""Images to latents and back, through a pipeline's autoencoder."""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from imagereward.errors import InputError
from imagereward.precision import full_precision


class KLAutoencoder:
    """A frozen AutoencoderKL with the scale and shift that its generator was trained with.

    `patch` is how many latents a side the network takes at once.
    """

    def __init__(self, vae: Any, resolution: int, patch: int = 1):
        if getattr(vae.config, "latents_mean", None) is not None:
            raise InputError("this autoencoder's latents have a mean and a deviation for each channel")
        self.vae = vae.requires_grad_(False).eval()
        self.downscale = 2 ** (len(vae.config.block_out_channels) - 1)
        self.shift = getattr(vae.config, "shift_factor", None) or 0.0
        least = self.downscale * patch
        if resolution < least or resolution % least:
            raise InputError(f"resolution={resolution}: this pipeline takes multiples of {least}")
        self.shape = (vae.config.latent_channels, resolution // self.downscale, resolution // self.downscale)

    def encode(self, images_B_3_H_W: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Images in [0, 1] to float32 latents: the posterior's mean, or with `noise` [B, *shape] a sample."""
        vae = self.vae
        with torch.no_grad():
            posterior = vae.encode((images_B_3_H_W * 2 - 1).to(vae.device, vae.dtype)).latent_dist
        latents = (
            posterior.mean if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean)
        )
        return (full_precision(latents) - self.shift) * vae.config.scaling_factor

    def decode(self, latents_B_C_h_w: torch.Tensor) -> torch.Tensor:
        """Latents to float32 images [B, 3, H, W] in [0, 1]; gradients reach the latents.

        Without gradient one by one: at 1024 pixels a batch would hold far more than a training step.
        """
        if torch.is_grad_enabled() and latents_B_C_h_w.requires_grad:
            return self._decode(latents_B_C_h_w)
        return torch.cat([self._decode(latents) for latents in latents_B_C_h_w.split(1)])

    def _decode(self, latents_B_C_h_w: torch.Tensor) -> torch.Tensor:
        vae = self.vae
        latents = latents_B_C_h_w / vae.config.scaling_factor + self.shift
        # Whatever surrounds this, the decoder runs in its own dtype: in float16, SDXL's overflows.
        with torch.autocast(vae.device.type, enabled=False):
            decoded = vae.decode(latents.to(vae.dtype)).sample
        return (full_precision(decoded) / 2 + 0.5).clamp(0, 1)

    def recompute(self) -> None:
        """Keep no activations of the decoder's layers: the backward pass recomputes them, a layer at a time.

        diffusers' own switch recomputes whole levels, and the three layers of the last, at full resolution,
        are then most of what a training step holds.
        """
        decoder = self.vae.decoder
        for block in (decoder.mid_block, *decoder.up_blocks):
            layers = (getattr(block, name, None) or () for name in ("resnets", "attentions", "upsamplers"))
            for layer in (layer for kind in layers for layer in kind if layer is not None):
                layer.forward = partial(checkpoint, type(layer).forward.__get__(layer), use_reentrant=False)
