"""VLMImages: resizes images by a transformers processor, whose inputs differ in shape between images."""

from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image
import torch
import torch.nn.functional as F

from imagereward.errors import ImageReadError, InputError
from imagereward.images.orientation import upright
from imagereward.images.processor import Processor

# What a processor returns beside the model's inputs for images.
TEXT_KEYS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "text_replacement_offsets")
STANDS_FOR = "stands_for"  # key of the text that stands for the image, UTF-8 bytes


class VLMImages(Processor):
    """The image inputs of a vision-language model, and the text that stands for the image.

    processor   the model's `transformers.ProcessorMixin`
    pixels      (least, most) pixels after resizing; None: the processor's own
    pillow      whether Pillow resizes to `pixels` first, so that the processor finds nothing to do
    apply_exif_rotation   whether images are turned as their EXIF orientation says
    """

    def __init__(
        self,
        processor: Any,
        pixels: tuple[int, int] | None = None,
        pillow: bool = False,
        apply_exif_rotation: bool = False,
    ):
        self.processor = processor
        self.pixels, self.pillow = pixels, pillow
        self.apply_exif_rotation = apply_exif_rotation
        self.options: dict[str, Any] = {}
        if pixels is not None and not pillow:
            size = getattr(processor.image_processor, "size", None) or {}
            if "shortest_edge" not in dict(size) or "longest_edge" not in dict(size):
                raise InputError(
                    f"pixels={pixels}: {type(processor.image_processor).__name__} resizes to {dict(size)}, "
                    f"not to "
                    "a number of pixels; expected pixels=None"
                )
            self.options["size"] = {"shortest_edge": pixels[0], "longest_edge": pixels[1]}

    def load(self, image: PIL.Image.Image) -> dict[str, torch.Tensor]:
        """The inputs of one image by name; ImageReadError if it is beyond the model's limits."""
        try:
            image = (upright(image) if self.apply_exif_rotation else image).convert("RGB")
            if self.pillow:
                image = image.resize(
                    self._size(image.height, image.width)[::-1], PIL.Image.Resampling.BICUBIC
                )
            return self._inputs(image)
        except (ValueError, ZeroDivisionError) as error:
            raise ImageReadError(
                f"an image of {image.width} x {image.height} pixels is beyond the model's limits: {error}"
            ) from error

    def collate(self, items: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, list]:
        """Lists by name: shapes differ."""
        return {name: [item[name] for item in items] for name in items[0]} if items else {}

    def from_pixels(self, pixels_B_3_H_W: torch.Tensor) -> dict[str, list]:
        """Inputs of pixels in [0, 1], by the processor's operations on tensors, so that gradients pass.

        They differ from those of the same image as a file by rounding to 8 bits before and after
        resizing.
        """
        if self.pillow:
            size = self._size(*pixels_B_3_H_W.shape[2:])
            pixels_B_3_H_W = F.interpolate(pixels_B_3_H_W, size, mode="bicubic", antialias=True).clamp(0, 1)
        return self.collate([self._inputs(pixels, do_rescale=False) for pixels in pixels_B_3_H_W])

    def on_device(self, batch: dict[str, list], device: torch.device) -> dict[str, list]:
        """The batch with every tensor on the device, but the texts."""
        return {
            name: values if name == STANDS_FOR else [value.to(device, non_blocking=True) for value in values]
            for name, values in batch.items()
        }

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) by Qwen2-VL's rule: multiples of a merged patch, `pixels` in all."""
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        assert self.pixels is not None
        images = self.processor.image_processor
        return smart_resize(height, width, images.patch_size * images.merge_size, *self.pixels)

    def _inputs(self, image: Any, **options: Any) -> dict[str, torch.Tensor]:
        mark = self.processor.image_token
        found = self.processor(
            text=[mark],
            images=[image],
            return_tensors="pt",
            return_text_replacement_offsets=True,
            **self.options,
            **options,
        )
        (place,) = found["text_replacement_offsets"][0]
        inputs = {name: value for name, value in found.items() if name not in TEXT_KEYS}
        text = place["replacement"].encode()
        return {**inputs, STANDS_FOR: torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def stands_for(item: torch.Tensor) -> str:
    """The text that stands for an image in the turn, from the value under `STANDS_FOR`."""
    return bytes(item.tolist()).decode()
