"""Images to latents and back: the Autoencoder protocol, and diffusers' autoencoders behind it.

Shapes: images [B, 3, H, W] in [0, 1]; latents [B, C, h, w] with h = H / downscale and w = W / downscale,
normalised as the generator that belongs to the autoencoder was trained on them: about mean 0, deviation 1.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch.utils.checkpoint import checkpoint

from imagereward.errors import InputError
from imagereward.precision import full_precision
from imagereward.tuning.data.image_size import ImageSize, Resolution

# Facts of an autoencoder's config that its latents do not depend on.
# The last has names in another order in every process.
NEUTRAL_FACTS = ("_name_or_path", "_diffusers_version", "_use_default_values")


class Autoencoder(Protocol):
    """A frozen autoencoder at one image size.

    vae        diffusers' own module, for its device, dtype, config and weights
    downscale  pixels a side that one latent stands for
    shape      (C, h, w): the shape of one image's latents
    """

    vae: Any
    downscale: int
    shape: tuple[int, int, int]

    def encode(self, images_B_3_H_W: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Images in [0, 1] to float32 latents [B, C, h, w], without gradient.

        The posterior's mean, or with standard normal `noise` [B, *shape] a sample of the posterior.
        """

    def decode(self, latents_B_C_h_w: torch.Tensor) -> torch.Tensor:
        """Latents to float32 images [B, 3, H, W] in [0, 1]; gradients reach the latents.

        Without gradient one by one: at 1024 pixels a batch would hold far more than a training step.
        """

    def recompute(self) -> None:
        """Keep no activations of the decoder's layers: the backward pass recomputes them, a layer at a time.

        diffusers' own switch recomputes whole levels, and the three layers of the last, at full resolution,
        are then most of what a training step holds.
        """


def open_autoencoder(vae: Any, size: ImageSize, patch: int = 1) -> Autoencoder:
    """The implementation that fits a diffusers autoencoder, which is frozen in place.

    size   of the images
    patch  how many latents a side make one token of the network

    Per-channel statistics (`latents_mean` and `latents_std` in its config) are PerChannelAutoencoder's;
    every other one is a KLAutoencoder. Raises InputError for a size that is no multiple of
    downscale * patch.
    """
    wrapper = KLAutoencoder if getattr(vae.config, "latents_mean", None) is None else PerChannelAutoencoder
    return wrapper(vae, size, patch)


class KLAutoencoder:
    """An AutoencoderKL with one scale and one shift for all channels (SD, SDXL, SD3, FLUX).

    latents = (z - shift_factor) * scaling_factor, where z is what the encoder makes of an image in [-1, 1].
    """

    def __init__(self, vae: Any, size: ImageSize, patch: int = 1):
        if getattr(vae.config, "latents_mean", None) is not None:
            raise InputError(
                "this autoencoder's latents have a mean and a deviation for each channel: "
                "expected PerChannelAutoencoder, as open_autoencoder chooses"
            )
        self.vae = vae.requires_grad_(False).eval()
        self.downscale = downscale_of(vae)
        self.shape = _latent_shape(vae.config.latent_channels, self.downscale, size, patch)
        self._shift = getattr(vae.config, "shift_factor", None) or 0.0

    def encode(self, images_B_3_H_W: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        z = _posterior(self.vae, images_B_3_H_W, noise)
        return (z - self._shift) * self.vae.config.scaling_factor

    def decode(self, latents_B_C_h_w: torch.Tensor) -> torch.Tensor:
        return _one_by_one(self._decode, latents_B_C_h_w)

    def _decode(self, latents_B_C_h_w: torch.Tensor) -> torch.Tensor:
        return _images(self.vae, latents_B_C_h_w / self.vae.config.scaling_factor + self._shift)

    def recompute(self) -> None:
        for layer in _decoder_layers(self.vae.decoder):
            layer.forward = partial(checkpoint, type(layer).forward.__get__(layer), use_reentrant=False)


class PerChannelAutoencoder:
    """An autoencoder with a mean and a deviation for each channel (Qwen-Image, Wan, Playground v2.5).

    latents = (z - latents_mean) * scaling_factor / latents_std, channel by channel, with a scaling_factor of
    1 where the config has none. An autoencoder for videos, whose z is [B, C, frames, h, w], takes an image as
    a video of one frame: its latents are [B, C, h, w] here all the same.
    """

    def __init__(self, vae: Any, size: ImageSize, patch: int = 1):
        config = vae.config
        channels, deviations = len(config.latents_mean), len(getattr(config, "latents_std", None) or ())
        if deviations != channels:
            raise InputError(
                f"this autoencoder has {channels} latents_mean and {deviations} latents_std: "
                "expected one of each for every channel"
            )
        self.vae = vae.requires_grad_(False).eval()
        self.downscale = downscale_of(vae)
        self.shape = _latent_shape(channels, self.downscale, size, patch)
        self._frames = next(vae.encoder.parameters()).ndim == 5  # a convolution over frames, rows, columns
        scale = getattr(config, "scaling_factor", None) or 1.0
        self._mean_C_1_1 = torch.tensor(config.latents_mean)[:, None, None]
        self._std_C_1_1 = torch.tensor(config.latents_std)[:, None, None] / scale

    def encode(self, images_B_3_H_W: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        if self._frames:
            images_B_3_H_W = images_B_3_H_W.unsqueeze(2)
            noise = None if noise is None else noise.unsqueeze(2)
        z = _posterior(self.vae, images_B_3_H_W, noise)
        z = z.squeeze(2) if self._frames else z
        return (z - self._mean_C_1_1.to(z)) / self._std_C_1_1.to(z)

    def decode(self, latents_B_C_h_w: torch.Tensor) -> torch.Tensor:
        return _one_by_one(self._decode, latents_B_C_h_w)

    def _decode(self, latents_B_C_h_w: torch.Tensor) -> torch.Tensor:
        z = latents_B_C_h_w * self._std_C_1_1.to(latents_B_C_h_w) + self._mean_C_1_1.to(latents_B_C_h_w)
        return _images(self.vae, z.unsqueeze(2)).squeeze(2) if self._frames else _images(self.vae, z)

    def recompute(self) -> None:
        for layer in _decoder_layers(self.vae.decoder):
            forward = type(layer).forward.__get__(layer)
            if self._frames:
                # Layers of video decoders take a cache of earlier frames and a counter that they advance:
                # run again in the backward pass, they would advance it twice. The first frame, which an
                # image is, has no earlier frames and comes out the same without a cache.
                layer.forward = partial(_recomputed_without_cache, forward)
            else:
                layer.forward = partial(checkpoint, forward, use_reentrant=False)


def downscale_of(vae: Any) -> int:
    """Pixels a side that one latent of a diffusers autoencoder stands for."""
    ratio = getattr(vae, "spatial_compression_ratio", None)  # Qwen-Image's and Wan's
    return int(ratio) if ratio else 2 ** (len(vae.config.block_out_channels) - 1)


def image_size(resolution: Resolution | None, own: int | Sequence[int], vae: Any) -> ImageSize:
    """The given size, or without one the model's own: `own` is in latents, a side or (rows, columns)."""
    if resolution is not None:
        return ImageSize.of(resolution)
    rows, columns = (own, own) if isinstance(own, int) else own
    return ImageSize(rows * downscale_of(vae), columns * downscale_of(vae))


def digest_of_autoencoder(vae: Any) -> str:
    """SHA-256 in hexadecimal of a diffusers autoencoder's config and weights, which its latents depend on."""
    facts = {name: value for name, value in dict(vae.config).items() if name not in NEUTRAL_FACTS}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, value in vae.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _latent_shape(channels: int, downscale: int, size: ImageSize, patch: int) -> tuple[int, int, int]:
    size.check_multiple(downscale * patch)
    return channels, size.height // downscale, size.width // downscale


def _posterior(vae: Any, images: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    """float32 z: the posterior's mean for images in [0, 1], or mean + deviation * noise."""
    with torch.no_grad():
        posterior = vae.encode((images * 2 - 1).to(vae.device, vae.dtype)).latent_dist
    mean = posterior.mean
    return full_precision(mean if noise is None else mean + posterior.std * noise.to(mean))


def _images(vae: Any, z: torch.Tensor) -> torch.Tensor:
    """float32 images in [0, 1] of z."""
    # Whatever surrounds this, the decoder runs in its own dtype: in float16, SDXL's overflows.
    with torch.autocast(vae.device.type, enabled=False):
        decoded = vae.decode(z.to(vae.dtype)).sample
    return (full_precision(decoded) / 2 + 0.5).clamp(0, 1)


def _one_by_one(decode: Callable[[torch.Tensor], torch.Tensor], latents: torch.Tensor) -> torch.Tensor:
    if torch.is_grad_enabled() and latents.requires_grad:
        return decode(latents)
    return torch.cat([decode(each) for each in latents.split(1)])


def _decoder_layers(decoder: Any) -> list[Any]:
    """A decoder's residual layers, attentions and upsamplers."""
    layers = []
    for block in (decoder.mid_block, *decoder.up_blocks):
        for name in ("resnets", "attentions", "upsamplers", "upsampler"):
            found = getattr(block, name, None)
            found = [found] if name == "upsampler" else found or ()
            layers += [layer for layer in found if layer is not None]
    return layers


def _recomputed_without_cache(forward: Callable, x: torch.Tensor, *cache: Any, **named: Any) -> torch.Tensor:
    return checkpoint(forward, x, use_reentrant=False)
