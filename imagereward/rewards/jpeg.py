"""JPEG compressibility of images as a reward, without gradient."""

import io
from collections.abc import Sequence

import torch

from imagereward.images.reading import to_pil

QUALITY = 95


def jpeg_compressibility(pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """Minus the size of each image as JPEG at quality 95, in kilobytes of 1000 bytes: [B].

    pixels_B_3_H_W   in [0, 1]

    Black et al. 2023, arXiv:2305.13301. With a weight of -1 the reward is incompressibility.
    """
    return torch.tensor([-_bytes(image) / 1000 for image in pixels_B_3_H_W])


def _bytes(image_3_H_W: torch.Tensor) -> int:
    buffer = io.BytesIO()
    to_pil(image_3_H_W).save(buffer, "JPEG", quality=QUALITY)
    return buffer.tell()
