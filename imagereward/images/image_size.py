"""The height and width of images in pixels: parsing, checking, and cropping pictures to them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import PIL.Image
import torch
from torchvision.transforms import v2

from imagereward.errors import ImageReadError, InputError
from imagereward.images.encoded import max_pixels

# A size as configs, the command line and Python give it: one number for a square, or (height, width).
Resolution = int | tuple[int, int]


class ImageSize(NamedTuple):
    """Height and width in pixels, each at least 1; the order is that of tensors [..., H, W]."""

    height: int
    width: int

    @classmethod
    def of(cls, resolution: int | str | Sequence[int]) -> "ImageSize":
        """The size that 512, "512", (768, 1152), [768, 1152] or "768x1152" stands for.

        One number is a square's side; of two, the height comes first. Raises InputError for any other value,
        and for a number below 1.
        """
        found = parse_resolution(resolution)
        return cls(found, found) if isinstance(found, int) else cls(*found)

    def check_multiple(self, multiple: int) -> None:
        """Raises InputError unless height and width are multiples of `multiple`, naming the nearest size."""
        if not any(side % multiple for side in self):
            return
        near = ImageSize(*(max(1, round(side / multiple)) * multiple for side in self))
        raise InputError(
            f"resolution={self.short}: this pipeline takes multiples of {multiple} pixels; "
            f"the nearest is {near.short}"
        )

    @property
    def short(self) -> str:
        """The size as configs write it: "512" for a square, else "[768, 1152]"."""
        return str(self.height) if self.height == self.width else str(list(self))

    def __str__(self) -> str:
        return f"{self.height} x {self.width}"


def parse_resolution(value: Any) -> Resolution:
    """A side in pixels, or (height, width), from a number, a pair of numbers, "512" or "768x1152".

    Raises InputError (a ValueError, so that pydantic reports it) for any other value, and for a number
    below 1.
    """
    found = value
    if isinstance(value, str) and re.fullmatch(r"\s*\d+\s*(x\s*\d+\s*)?", value):
        numbers = [int(side) for side in value.split("x")]
        found = numbers[0] if len(numbers) == 1 else numbers
    if _is_side(found):
        return found
    if isinstance(found, list | tuple) and len(found) == 2 and all(map(_is_side, found)):
        return found[0], found[1]
    raise InputError(
        f"resolution={value!r}: expected pixels, at least 1: one number for a square, or height and width as "
        "[768, 1152] (on the command line also 768x1152)"
    )


def _is_side(value: Any) -> bool:
    return type(value) is int and value >= 1  # `type`, because isinstance(True, int)


def covering(height: int, width: int, size: ImageSize) -> tuple[int, int]:
    """(height, width) in pixels of the smallest image with the given proportions that covers `size`.

    The scale is max(size.height / height, size.width / width). One side equals that of `size`; the other is
    rounded down to whole pixels, but not below that of `size`.
    """
    if height * size.width <= width * size.height:
        return size.height, max(size.width, int(size.height * width / height))
    return max(size.height, int(size.width * height / width)), size.width


def cropping(height: int, width: int, size: ImageSize) -> tuple[int, int]:
    """(top, left) in pixels of the centre crop of `size` in an image of `height` and `width` pixels."""
    return round((height - size.height) / 2), round((width - size.width) / 2)


@dataclass(frozen=True)
class CoverCrop:
    """Resizes an image so that it covers `size` (bicubic, antialiased) and crops its centre.

    For a square the pixels are those of `imagereward.images.preprocess.Preprocess(size).pixels`.
    """

    size: ImageSize

    def pixels(self, image: PIL.Image.Image) -> torch.Tensor:
        """The resized and cropped image, RGB, uint8 [3, H, W].

        Raises ImageReadError for an image so narrow that, resized, it would exceed max_pixels().
        """
        height, width = self._covering(image)
        image = v2.functional.resize(image, [height, width], v2.InterpolationMode.BICUBIC)
        top, left = cropping(height, width, self.size)
        cropped = image.crop((left, top, left + self.size.width, top + self.size.height))
        return v2.functional.pil_to_tensor(cropped.convert("RGB"))

    def mask(self, mask: PIL.Image.Image) -> torch.Tensor:
        """float32 [1, H, W]: 1 where the mask's grey value is at least 128 of 255, else 0.

        It is resized and cropped as its image is, but with nearest neighbours instead of bicubic. Raises
        ImageReadError as `pixels` does.
        """
        height, width = self._covering(mask)
        small = v2.functional.resize(mask.convert("L"), [height, width], v2.InterpolationMode.NEAREST)
        top, left = cropping(height, width, self.size)
        cropped = small.crop((left, top, left + self.size.width, top + self.size.height))
        return (v2.functional.pil_to_tensor(cropped) >= 128).float()

    def _covering(self, image: PIL.Image.Image) -> tuple[int, int]:
        height, width = covering(image.height, image.width, self.size)
        if height * width > max_pixels():
            raise ImageReadError(
                f"an image of {image.width} x {image.height} is too narrow: covering {self.size} (height x "
                f"width) it would have {height * width} pixels, more than max_pixels()={max_pixels():.0f}"
            )
        return height, width
