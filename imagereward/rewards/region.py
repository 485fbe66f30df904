"""Regions of a mask: its bounding box, the two rings along its boundary, and Sobel gradients.

Shapes: masks [B, 1, H, W] of 0 and 1, 1 where the image is painted anew; pixels [B, 3, H, W] in [0, 1].
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from torch.nn import functional

from imagereward.errors import InputError

RING = 5  # side in pixels of the square by which a mask is dilated and eroded
_AREA = 1e-6  # added to a ring's area
_SQUARE = 1e-8  # added to a squared gradient, so that its root has a derivative at 0


class Box(NamedTuple):
    """Rows top..bottom - 1 and columns left..right - 1 of an image."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.bottom - self.top, self.right - self.left


def bounding_box(mask_H_W: torch.Tensor) -> Box:
    """The smallest box that holds every pixel of at least 0.5. Raises InputError for a mask without any."""
    rows, columns = ((mask_H_W >= 0.5).any(axis).nonzero().flatten() for axis in (1, 0))
    if not len(rows):
        raise InputError("the mask is empty: expected white where the image is painted anew")
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def grown(box: Box, least: int, size: tuple[int, int]) -> Box:
    """The box grown to at least `least` pixels a side, and moved inside the image.

    least  in pixels; where the image is smaller, the box takes its whole side
    size   (height, width) of the image

    It grows by as much on both sides; of an odd number of pixels, the larger half goes to the end.
    """
    top, bottom = _grown(box.top, box.bottom, least, size[0])
    left, right = _grown(box.left, box.right, least, size[1])
    return Box(top, left, bottom, right)


def _grown(start: int, end: int, least: int, side: int) -> tuple[int, int]:
    length = min(max(end - start, least), side)
    start = min(max(start - (length - (end - start)) // 2, 0), side - length)
    return start, start + length


def rings(masks_B_1_H_W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(inner, outer): the mask without its erosion, and its dilation without the mask, by 5 x 5 squares.

    Pixels beyond the image's border count neither as masked nor as unmasked.
    """
    dilated = functional.max_pool2d(masks_B_1_H_W, RING, 1, RING // 2)
    eroded = -functional.max_pool2d(-masks_B_1_H_W, RING, 1, RING // 2)
    return masks_B_1_H_W - eroded, dilated - masks_B_1_H_W


def sobel_magnitude(pixels_B_3_H_W: torch.Tensor) -> torch.Tensor:
    """[B, 1, H, W]: sqrt(gx^2 + gy^2 + 1e-8) of Sobel's gradients, averaged over the channels.

    The image continues beyond its border with its outermost pixels, so that its border is no edge.
    """
    smooth, slope = pixels_B_3_H_W.new_tensor([1.0, 2, 1]), pixels_B_3_H_W.new_tensor([-1.0, 0, 1])
    kernels = torch.stack([smooth[:, None] * slope, slope[:, None] * smooth])[:, None]
    padded = functional.pad(pixels_B_3_H_W, (1, 1, 1, 1), mode="replicate")
    gradients = functional.conv2d(padded.flatten(0, 1)[:, None], kernels)
    magnitude = (gradients.square().sum(1, keepdim=True) + _SQUARE).sqrt()
    return magnitude.view_as(pixels_B_3_H_W).mean(1, keepdim=True)


def boundary_score(pixels_B_3_H_W: torch.Tensor, masks_B_1_H_W: torch.Tensor) -> torch.Tensor:
    """-|mean Sobel magnitude over the inner ring - over the outer ring|, [B], at most 0; 0 is no seam.

    A ring's sum is divided by its area + 1e-6. The gradient reaches the pixels.
    """
    magnitude = sobel_magnitude(pixels_B_3_H_W)
    inner, outer = (
        (magnitude * ring).sum((1, 2, 3)) / (ring.sum((1, 2, 3)) + _AREA) for ring in rings(masks_B_1_H_W)
    )
    return -(inner - outer).abs()


def boundary_of_picture(picture: PIL.Image.Image, mask: PIL.Image.Image, tile: int = 512) -> float:
    """`boundary_score` of a picture of any size, in memory for a tile of it.

    picture   RGB
    mask      "L" of the picture's size: 255 where it is painted anew, 0 elsewhere
    tile      side in pixels of the squares whose sums are added

    Raises InputError for a mask without any white.
    """
    totals = torch.zeros(2, 2, dtype=torch.float64)  # (inner, outer) x (sum of magnitudes, area)
    for seen, kept in _tiles(mask, tile):
        pixels = torch.from_numpy(np.array(picture.crop(seen).convert("RGB"))).permute(2, 0, 1)[None]
        white = torch.from_numpy(np.array(mask.crop(seen)))[None, None] / 255
        magnitude = sobel_magnitude(pixels.float() / 255)
        for place, ring in enumerate(rings(white)):
            ring = ring[..., kept[0], kept[1]].double()
            totals[place] += torch.stack([(magnitude[..., kept[0], kept[1]] * ring).sum(), ring.sum()])
    inner, outer = totals[:, 0] / (totals[:, 1] + _AREA)
    return -float((inner - outer).abs())


def _tiles(
    mask: PIL.Image.Image, tile: int
) -> Iterator[tuple[tuple[int, int, int, int], tuple[slice, slice]]]:
    """(Pillow's box to read, the rows and columns of it that count): the squares that hold the rings.

    A ring reaches `RING // 2` pixels beyond the mask, and depends on as many around a pixel; a gradient on
    one.
    """
    box = mask.getbbox()
    if box is None:
        raise InputError("the mask is empty: expected white where the image is painted anew")
    reach = RING // 2
    left, top = max(0, box[0] - reach), max(0, box[1] - reach)
    right, bottom = min(mask.width, box[2] + reach), min(mask.height, box[3] + reach)
    for y in range(top, bottom, tile):
        for x in range(left, right, tile):
            end_x, end_y = min(x + tile, right), min(y + tile, bottom)
            seen_x, seen_y = max(0, x - reach), max(0, y - reach)
            seen = (seen_x, seen_y, min(mask.width, end_x + reach), min(mask.height, end_y + reach))
            darkest, lightest = mask.crop(seen).getextrema()
            if darkest != lightest:  # a square of one value has no boundary
                yield seen, (slice(y - seen_y, end_y - seen_y), slice(x - seen_x, end_x - seen_x))


def outside_distance(
    pixels_B_3_H_W: torch.Tensor, originals_B_3_H_W: torch.Tensor, masks_B_1_H_W: torch.Tensor
) -> torch.Tensor:
    """Mean absolute difference from the original over the unmasked pixels and channels, [B], in [0, 1]."""
    kept = (1 - masks_B_1_H_W).expand_as(pixels_B_3_H_W)
    moved = (pixels_B_3_H_W - originals_B_3_H_W).abs() * kept
    return moved.sum((1, 2, 3)) / kept.sum((1, 2, 3)).clamp(min=1)
