"""The measure of Shapes as reward functions of (pixels, prompts), without gradients."""

from collections.abc import Sequence

import torch
from PIL import Image

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
