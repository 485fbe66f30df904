"""The measure of Shapes as reward functions of (pixels, prompts), without gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from imagereward.errors import InputError
from imagereward.images.reading import to_pil
from imagereward.images.row_pictures import name_row, open_pictures
from imagereward.shapes.inpainting import measure_inpainting
from imagereward.shapes.measure import Measurement, measure


def measured(pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str]) -> list[Measurement]:
    """`measure` for each image of pixels [B, 3, H, W] in [0, 1] and its prompt."""
    arrays = (
        (pixels_B_3_H_W.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    )
    return [measure(Image.fromarray(array), prompt) for array, prompt in zip(arrays, prompts, strict=True)]


def faithfulness(pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """`Measurement.faithfulness` [B], in [0, 1], of pixels in [0, 1]."""
    return torch.tensor([found.faithfulness for found in measured(pixels_B_3_H_W, prompts)])


def cleanliness(pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """`Measurement.cleanliness` [B], in [0, 1], of pixels in [0, 1]."""
    return torch.tensor([found.cleanliness for found in measured(pixels_B_3_H_W, prompts)])


def painted(
    pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str], rows: Sequence[Any] | None = None
) -> torch.Tensor:
    """`InpaintingMeasurement.faithfulness` [B], in [0, 1]: whether the mask shows what the prompt asks for.

    rows   the requests, with image and mask; square, as the pixels are
    """
    if rows is None:
        raise InputError("painted reads the mask of each row: expected rows with an image and a mask")
    found = []
    for index, (image, prompt, row) in enumerate(zip(pixels_B_3_H_W, prompts, rows, strict=True)):
        original, mask = open_pictures(row, ("image", "mask"), name_row(row, index))
        found.append(measure_inpainting(to_pil(image), prompt, original, mask).faithfulness)
    return torch.tensor(found)
