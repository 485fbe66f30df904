"""Processor: the interface that turns images into a scorer's input; `Preprocess` is the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import PIL.Image

from imagereward.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

    # One image, loaded: a tensor, or tensors by name, of any shapes.
    ImageInput = torch.Tensor | Mapping[str, torch.Tensor]


class Processor(Protocol):
    """Loads images one by one, and makes batches of them for `Scorer.encode_images`.

    `Preprocess` is the default: pixels of one size, stacked. Another subclasses this class, defines `load`
    and `collate`, and has to be picklable: bulk scoring loads images in processes of their own.
    """

    def load(self, image: PIL.Image.Image) -> ImageInput:
        """The image's input on the CPU; runs in threads and processes. Shapes may differ by image."""
        raise NotImplementedError

    def collate(self, items: Sequence[Any]) -> Any:
        """A batch of what `load` gave, on the CPU: a tensor, or a dict that may hold ragged data."""
        raise NotImplementedError

    def from_pixels(self, pixels_B_3_H_W: torch.Tensor) -> Any:
        """A batch from pixels in [0, 1], differentiable; optional. Without it a scorer has no `reward`."""
        raise InputError(
            f"{type(self).__name__} makes no input of pixels differentiably (it defines no from_pixels): "
            "its scorer has no `reward`; train from its scores, without gradients"
        )

    def on_device(self, batch: Any, device: torch.device) -> Any:
        """The argument of `encode_images`: here the batch, with the tensors of a dict, on the device."""
        if isinstance(batch, Mapping):
            return {
                name: value.to(device, non_blocking=True) if hasattr(value, "to") else value
                for name, value in batch.items()
            }
        return batch.to(device, non_blocking=True)

    @property
    def differentiable(self) -> bool:
        """Whether it defines `from_pixels`."""
        return type(self).from_pixels is not Processor.from_pixels


def as_arrays(item: ImageInput) -> np.ndarray | dict[str, np.ndarray]:
    """Tensors as NumPy arrays, which pipes between processes carry without shared memory."""
    if isinstance(item, Mapping):
        return {name: value.numpy() for name, value in item.items()}
    return item.numpy()


def bytes_of(item: ImageInput) -> int:
    """The memory that an image's input takes."""
    return sum(value.nbytes for value in (item.values() if isinstance(item, Mapping) else [item]))


def as_tensors(item: Any) -> ImageInput:
    """The inverse of `as_arrays`."""
    import torch

    if isinstance(item, Mapping):
        return {name: torch.from_numpy(value) for name, value in item.items()}
    return torch.from_numpy(item)
