"""Opens a row's image and mask, checks that they match, crops both to one size, makes the mask 0 and 1."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch

from imagereward.errors import ImageReadError, ImageTypeError, InputError
from imagereward.images.image_size import CoverCrop, ImageSize
from imagereward.images.orientation import upright
from imagereward.images.reading import read_image

WHITE = 128  # the grey value, of 255, from which a mask's pixel is painted anew


def open_pictures(row: Any, inputs: Sequence[str], where: str) -> list[PIL.Image.Image]:
    """The row's pictures that `inputs` names, decoded and turned upright by their EXIF orientation.

    row     any object with attributes of these names, such as a `Request`
    inputs  names of pictures, of "image" and "mask"
    where   the row's name in error messages

    diffusers.utils.load_image turns pictures upright as well. Sizes are compared after turning. Raises
    InputError for a picture that is missing or unreadable, for a mask of another size than its image, and
    for a mask without any white pixel, or with white pixels only.
    """
    found = []
    for name in inputs:
        picture = getattr(row, name, None)
        if picture is None:
            raise InputError(f"{where} has no {name}: expected {', '.join(('prompt', *inputs))}")
        try:
            found.append(upright(read_image(picture)))
        except (ImageReadError, ImageTypeError) as error:
            raise InputError(f"{where}: its {name}{_path(picture)} cannot be read: {error}") from error
    sizes = [f"{name} {'x'.join(map(str, each.size))}" for name, each in zip(inputs, found, strict=True)]
    if len({each.size for each in found}) > 1:
        raise InputError(f"{where}: expected pictures of one size, got {', '.join(sizes)} pixels")
    if "mask" in inputs:
        grey = found[list(inputs).index("mask")].convert("L")
        white = np.asarray(grey) >= WHITE
        check_mask(bool(white.any()), bool(white.all()), mask_name(row, where))
    return found


def name_row(row: Any, index: int) -> str:
    """The row's name in error messages: its own (`where`), else its index from 0 and its prompt."""
    return getattr(row, "where", "") or f"row {index} ({getattr(row, 'prompt', row)!r})"


def mask_at(row: Any, size: ImageSize, where: str) -> torch.Tensor:
    """float32 [1, H, W]: the row's mask, cropped as its image is; 1 where the image is painted anew.

    Raises InputError as `open_pictures` does, and for a mask of which the crop leaves nothing or everything.
    """
    inputs = ("mask",) if getattr(row, "image", None) is None else ("image", "mask")
    return cropped_mask(open_pictures(row, inputs, where)[-1], size, mask_name(row, where))


def image_at(row: Any, size: ImageSize, where: str) -> torch.Tensor:
    """float32 [3, H, W] in [0, 1]: the row's image, resized to cover the size and cropped at the centre."""
    return cropped_image(open_pictures(row, ("image",), where)[0], size)


def cropped_image(image: PIL.Image.Image, size: ImageSize) -> torch.Tensor:
    """float32 [3, H, W] in [0, 1] of a PIL image, resized to cover the size and cropped at the centre."""
    return CoverCrop(size).pixels(image).float() / 255


def cropped_mask(mask: PIL.Image.Image, size: ImageSize, name: str) -> torch.Tensor:
    """float32 [1, H, W] of a PIL mask, 1 where it is at least half white, cropped as its image is.

    name    the mask's in error messages, from `mask_name`

    Raises InputError for a mask of which the crop leaves no white pixel, or white pixels only, and for one
    that is too narrow.
    """
    try:
        found = CoverCrop(size).mask(mask)
    except ImageReadError as error:
        raise InputError(f"{name}: {error}") from error
    check_mask(bool(found.any()), bool(found.all()), f"{name}, at {size} (height x width),")
    return found


def mask_name(row: Any, where: str) -> str:
    """The name of the row's mask in error messages, with its path; `where` is the row's name."""
    return f"{where}: its mask{_path(row.mask)}"


def check_mask(any_white: bool, all_white: bool, name: str) -> None:
    """Raises InputError for a mask without any white pixel, or with white pixels only.

    name    the mask's in the message
    """
    if not any_white:
        raise InputError(f"{name} is empty: expected white (128 to 255) where the image is painted anew")
    if all_white:
        raise InputError(f"{name} is white everywhere: expected black where the image is kept")


def _path(picture: Any) -> str:
    return f" {os.fspath(picture)}" if isinstance(picture, str | os.PathLike) else ""
