"""Encodes the image and mask of a row into channels beside the latents, or into a second token sequence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from imagereward.tuning.data.image_size import CoverCrop, ImageSize
from imagereward.tuning.data.requests import Row, name_row, open_pictures
from imagereward.tuning.families.autoencoder import Autoencoder


@dataclass(frozen=True)
class ImageConditioning:
    """Which pictures a row brings, and how they are encoded into tensors of the condition.

    inputs  names of the pictures in the order in which `encode` takes them: "image", or "image" and "mask"
    encode  (autoencoder, images [B, 3, H, W] in [0, 1], masks [B, 1, H, W] of 0 and 1, where `inputs` has
            "mask") -> tensors [B, ...]: "channels" [B, C', h, w], laid beside the latents as channels, or
            "beside" [B, C, h, w], a second picture whose tokens follow the sample's
    """

    inputs: tuple[str, ...] = ()
    encode: Callable[..., dict[str, torch.Tensor]] = dict

    def __call__(
        self, rows: Sequence[Row], autoencoder: Autoencoder, size: ImageSize
    ) -> dict[str, torch.Tensor]:
        """The condition tensors of the rows' pictures, resized to cover `size` and cropped at the centre.

        Raises InputError for a picture that is missing, and for a mask that is not of its image's size.
        """
        if not self.inputs:
            return {}
        opened = [open_pictures(row, self.inputs, name_row(row, i)) for i, row in enumerate(rows)]
        to_pixels = [TO_PIXELS[name] for name in self.inputs]
        columns = [[convert(each[at], size) for each in opened] for at, convert in enumerate(to_pixels)]
        return self.encode(
            autoencoder, *(torch.stack(column).to(autoencoder.vae.device) for column in columns)
        )


def image_pixels(image, size: ImageSize) -> torch.Tensor:
    """float32 [3, H, W] in [0, 1] of a PIL image, resized to cover the size and cropped at the centre."""
    return CoverCrop(size).pixels(image).float() / 255


def mask_pixels(mask, size: ImageSize) -> torch.Tensor:
    """float32 [1, H, W] of a PIL mask, 1 where it is at least half white, cropped as its image is."""
    return CoverCrop(size).mask(mask)


def reference_image(autoencoder: Autoencoder, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """FLUX Kontext: "beside" is the image's latents [B, C, h, w], whose tokens follow the sample's."""
    return {"beside": autoencoder.encode(images)}


def latent_mask(
    autoencoder: Autoencoder, images: torch.Tensor, masks: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Stable Diffusion inpainting: "channels" [B, 1 + C, h, w], the mask in the latents' size, then the
    latents of the masked image.
    """
    small = torch.nn.functional.interpolate(masks, size=autoencoder.shape[-2:])
    return {"channels": torch.cat([small, autoencoder.encode(masked_image(images, masks))], 1)}


def pixel_mask(
    autoencoder: Autoencoder, images: torch.Tensor, masks: torch.Tensor
) -> dict[str, torch.Tensor]:
    """FLUX Fill: "channels" [B, C + downscale^2, h, w], the latents of the masked image, then all of the
    mask's pixels, as channels.
    """
    pixels = torch.nn.functional.pixel_unshuffle(masks, autoencoder.downscale)
    return {"channels": torch.cat([autoencoder.encode(masked_image(images, masks)), pixels], 1)}


def masked_image(images_B_3_H_W: torch.Tensor, masks_B_1_H_W: torch.Tensor) -> torch.Tensor:
    """The images with the masked region set to 0.5, which is 0 in the autoencoder's range [-1, 1]."""
    return images_B_3_H_W * (1 - masks_B_1_H_W) + 0.5 * masks_B_1_H_W


# Name of a picture -> (PIL image, size) -> pixels.
TO_PIXELS = {"image": image_pixels, "mask": mask_pixels}
TEXT_ONLY = ImageConditioning()
REFERENCE_IMAGE = ImageConditioning(("image",), reference_image)
LATENT_MASK = ImageConditioning(("image", "mask"), latent_mask)
PIXEL_MASK = ImageConditioning(("image", "mask"), pixel_mask)
