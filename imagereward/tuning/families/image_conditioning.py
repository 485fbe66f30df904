"""What a network is shown of the pictures in a row: as channels beside its input, or as a second picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import PIL.Image
import torch
from torchvision.transforms import v2

from imagereward.images.preprocess import Preprocess
from imagereward.tuning.data.requests import Row, name_row, open_pictures
from imagereward.tuning.families.autoencoder import KLAutoencoder


@dataclass(frozen=True)
class ImageConditioning:
    """Which pictures a row brings, and what becomes of them.

    inputs  "image" and "mask", or fewer
    shown   (latents, images [B, 3, S, S], masks [B, 1, S, S]), as many as inputs -> tensors of the condition;
            images are in [0, 1], masks 0 or 1
    """

    inputs: tuple[str, ...] = ()
    shown: Callable[..., dict[str, torch.Tensor]] = dict

    def __call__(
        self, rows: Sequence[Row], autoencoder: KLAutoencoder, resolution: int
    ) -> dict[str, torch.Tensor]:
        """The rows' pictures, cut to squares of the resolution. Raises InputError for one that is missing."""
        if not self.inputs:
            return {}
        opened = [open_pictures(row, self.inputs, name_row(row, i)) for i, row in enumerate(rows)]
        cut = [PREPROCESSING[name] for name in self.inputs]
        columns = [[fit(each[at], resolution) for each in opened] for at, fit in enumerate(cut)]
        return self.shown(
            autoencoder, *(torch.stack(column).to(autoencoder.vae.device) for column in columns)
        )


def image_pixels(image: PIL.Image.Image, size: int) -> torch.Tensor:
    """float32 [3, size, size] in [0, 1]: the short side resized, then the centre."""
    return Preprocess(size).pixels(image).float() / 255


def mask_pixels(mask: PIL.Image.Image, size: int) -> torch.Tensor:
    """float32 [1, size, size], 1 where the mask is at least half white, cut as its image is."""
    small = v2.functional.resize(mask.convert("L"), [size], v2.InterpolationMode.NEAREST)
    square = v2.functional.center_crop(small, [size, size])
    return (v2.functional.pil_to_tensor(square) >= 128).float()


def reference_image(autoencoder: KLAutoencoder, images) -> dict[str, torch.Tensor]:
    """FLUX Kontext: the image's latents, to be laid beside the sample's."""
    return {"beside": autoencoder.encode(images)}


def latent_mask(autoencoder: KLAutoencoder, images, masks) -> dict[str, torch.Tensor]:
    """Stable Diffusion: the mask in the latents' size, and the latents of what it leaves."""
    small = torch.nn.functional.interpolate(masks, size=autoencoder.shape[-2:])
    return {"channels": torch.cat([small, autoencoder.encode(masked_image(images, masks))], 1)}


def pixel_mask(autoencoder: KLAutoencoder, images, masks) -> dict[str, torch.Tensor]:
    """FLUX Fill: the latents of what the mask leaves, and all of its pixels as channels."""
    pixels = torch.nn.functional.pixel_unshuffle(masks, autoencoder.downscale)
    return {"channels": torch.cat([autoencoder.encode(masked_image(images, masks)), pixels], 1)}


def masked_image(images, masks) -> torch.Tensor:
    """The images with grey, which the autoencoder takes as 0, where they are painted anew."""
    return images * (1 - masks) + 0.5 * masks


# How each of a row's pictures becomes pixels.
PREPROCESSING = {"image": image_pixels, "mask": mask_pixels}
TEXT_ONLY = ImageConditioning()
REFERENCE_IMAGE = ImageConditioning(("image",), reference_image)
LATENT_MASK = ImageConditioning(("image", "mask"), latent_mask)
PIXEL_MASK = ImageConditioning(("image", "mask"), pixel_mask)
