"""Sizes of images and crops to them as training takes them: the names of `imagereward.images.image_size`."""

from imagereward.images.image_size import (
    CoverCrop,
    ImageSize,
    Resolution,
    covering,
    cropping,
    parse_resolution,
)

__all__ = ["CoverCrop", "ImageSize", "Resolution", "covering", "cropping", "parse_resolution"]
