"""Encodes the image and mask of a row into channels beside the latents, or into a second token sequence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from imagereward.images.row_pictures import cropped_image, cropped_mask, mask_name
from imagereward.tuning.data.image_size import ImageSize
from imagereward.tuning.data.requests import Row, name_row, open_pictures
from imagereward.tuning.families.autoencoder import Autoencoder

Latents = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ImageConditioning:
    """Which pictures a row brings, and how they are encoded into tensors of the condition.

    inputs   names of the pictures in the order in which `encode` takes them: "image", or "image" and "mask"
    encode   (autoencoder, images [B, 3, H, W] in [0, 1], masks [B, 1, H, W] of 0 and 1, where `inputs` has
             "mask") -> latents [B, C, h, w] by name, which a cache may keep
    arrange  (autoencoder, these latents, masks or None) -> tensors of the condition [B, ...]: "channels"
             [B, C', h, w], laid beside the latents as channels, or "beside" [B, C, h, w], a second picture
             whose tokens follow the sample's
    """

    inputs: tuple[str, ...] = ()
    encode: Callable[..., Latents] = dict
    arrange: Callable[..., Latents] = dict

    def __call__(
        self, rows: Sequence[Row], autoencoder: Autoencoder, size: ImageSize
    ) -> dict[str, torch.Tensor]:
        """The condition tensors of the rows' pictures, resized to cover `size` and cropped at the centre.

        Raises InputError for a picture that is missing, and for a mask that is not of its image's size, or
        that is empty or white everywhere.
        """
        if not self.inputs:
            return {}
        device = autoencoder.vae.device
        columns = [column.to(device) for column in self.pixels(rows, size)]
        masks = columns[1] if "mask" in self.inputs else None
        return self.arrange(autoencoder, self.encode(autoencoder, *columns), masks)

    def pixels(self, rows: Sequence[Row], size: ImageSize) -> list[torch.Tensor]:
        """The rows' pictures, in the order of `inputs`: images [B, 3, H, W], masks [B, 1, H, W]."""
        columns: list[list[torch.Tensor]] = [[] for _ in self.inputs]
        for index, row in enumerate(rows):
            where = name_row(row, index)
            for name, column, picture in zip(
                self.inputs, columns, open_pictures(row, self.inputs, where), strict=True
            ):
                column.append(
                    cropped_mask(picture, size, mask_name(row, where))
                    if name == "mask"
                    else cropped_image(picture, size)
                )
        return [torch.stack(column) for column in columns]


def whole_image(autoencoder: Autoencoder, images: torch.Tensor) -> Latents:
    """FLUX Kontext: "source", the latents of the image."""
    return {"source": autoencoder.encode(images)}


def without_mask(autoencoder: Autoencoder, images: torch.Tensor, masks: torch.Tensor) -> Latents:
    """Inpainting: "masked", the latents of the masked image."""
    return {"masked": autoencoder.encode(masked_image(images, masks))}


def beside_sample(autoencoder: Autoencoder, latents: Latents, masks: torch.Tensor | None) -> Latents:
    """FLUX Kontext: "beside" is the image's latents [B, C, h, w], whose tokens follow the sample's."""
    return {"beside": latents["source"]}


def latent_mask(autoencoder: Autoencoder, latents: Latents, masks: torch.Tensor) -> Latents:
    """Stable Diffusion inpainting: "channels" [B, 1 + C, h, w], the mask in the latents' size, then the
    latents of the masked image.
    """
    small = torch.nn.functional.interpolate(masks, size=autoencoder.shape[-2:])
    return {"channels": torch.cat([small, latents["masked"]], 1)}


def pixel_mask(autoencoder: Autoencoder, latents: Latents, masks: torch.Tensor) -> Latents:
    """FLUX Fill: "channels" [B, C + downscale^2, h, w], the latents of the masked image, then all of the
    mask's pixels, as channels.
    """
    pixels = torch.nn.functional.pixel_unshuffle(masks, autoencoder.downscale)
    return {"channels": torch.cat([latents["masked"], pixels], 1)}


def masked_image(images_B_3_H_W: torch.Tensor, masks_B_1_H_W: torch.Tensor) -> torch.Tensor:
    """The images with the masked region set to 0.5, which is 0 in the autoencoder's range [-1, 1]."""
    return images_B_3_H_W * (1 - masks_B_1_H_W) + 0.5 * masks_B_1_H_W


TEXT_ONLY = ImageConditioning()
REFERENCE_IMAGE = ImageConditioning(("image",), whole_image, beside_sample)
LATENT_MASK = ImageConditioning(("image", "mask"), without_mask, latent_mask)
PIXEL_MASK = ImageConditioning(("image", "mask"), without_mask, pixel_mask)
