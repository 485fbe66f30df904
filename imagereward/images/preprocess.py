"""`Preprocess`: resizes, crops and normalises images to a model's pixels, on PIL images or on tensors.

There are two paths and one set of numbers. The **PIL path** (`Preprocess.pixels`) repeats what the
original implementations do, bit for bit. The **tensor path** (`Preprocess.resize`) does the same geometry
on float tensors, antialiased and differentiable, for rewards inside training loops. For "clip" and
"transformers" the PIL path resizes with Pillow, rounds to 8 bits afterwards, and clips pixel noise between
Pillow's two passes; `tests/test_images.py` measures the distance: about one level of 255 at most on smooth
pictures. For "pad" both paths resize by `resize`. Vision-language judges resize by their own processor
instead, in `models/vlm/images.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import PIL.Image

from imagereward.errors import ImageReadError, InputError
from imagereward.images.encoded import max_pixels
from imagereward.images.orientation import upright
from imagereward.images.processor import Processor

if TYPE_CHECKING:  # imported where it is used: the registry of scorers, all facts, is listed without it
    import torch

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess(Processor):
    """The default `Processor`: pixels [3, size, size] of every image, stacked and normalised.

    `resizing` is the order of operations:

    - `"clip"`: resize the short side in the image's own mode (bicubic, antialiased), centre crop,
      then convert to RGB. ImageReward, BLIP, CLIP and Aesthetic.
    - `"transformers"`: convert to RGB first; crop offsets rounded down. PickScore.
    - `"pad"`: convert to RGB, resize the *long* side as float, pad with black to a square. HPS.

    `apply_exif_rotation` first turns an image upright by its EXIF orientation. The original implementations
    do not, so they may score a photo lying on its side.

    Calling it on a PIL image gives the normalised float32 tensor [3, size, size].
    """

    size: int = 224
    resizing: Literal["clip", "transformers", "pad"] = "clip"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    apply_exif_rotation: bool = False

    def __post_init__(self) -> None:
        if self.resizing not in ("clip", "transformers", "pad"):
            raise InputError(f"resizing={self.resizing!r}: expected clip, transformers or pad")
        if type(self.size) is not int or self.size < 1:
            raise InputError(f"size={self.size!r}: expected a whole number of pixels")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(isinstance(value, (int, float)) for value in values):
                raise InputError(f"{name}={values!r}: expected three numbers")
        if not isinstance(self.apply_exif_rotation, bool):
            raise InputError(f"apply_exif_rotation={self.apply_exif_rotation!r}: expected true or false")

    def __call__(self, image: PIL.Image.Image) -> torch.Tensor:
        return self.normalize(self.pixels(eight_bits(image, "image"))[None])[0]

    def load(self, image: PIL.Image.Image) -> torch.Tensor:
        """`pixels`: [3, size, size]."""
        return self.pixels(image)

    def collate(self, items: Sequence[Any]) -> torch.Tensor:
        """[B, 3, size, size], not normalised."""
        import torch

        return torch.stack(tuple(items))

    def from_pixels(self, pixels_B_3_H_W: torch.Tensor) -> torch.Tensor:
        """`resize`: [B, 3, size, size], not normalised."""
        return self.resize(pixels_B_3_H_W)

    def on_device(self, batch: torch.Tensor, device: torch.device) -> torch.Tensor:
        """[B, 3, size, size], normalised on the device."""
        return self.normalize(batch.to(device, non_blocking=True))

    def pixels(self, image: PIL.Image.Image) -> torch.Tensor:
        """The exact path: a PIL image to [3, size, size], uint8 where the resizing rounds."""
        if self.apply_exif_rotation:
            image = upright(image)
        if self.resizing == "pad":
            return self.resize(_to_tensor(image.convert("RGB"))[None].float().div_(255))[0]
        if self.resizing == "transformers":
            image = image.convert("RGB")
        height, width = self._short_side(image.height, image.width)
        if height * width > max_pixels():
            raise ImageReadError(
                f"an image of {image.width} x {image.height} is too narrow: with its short side at "
                f"{self.size} it would have {height * width} pixels "
                "(if you trust it, raise the limit: --max-pixels of the command, in millions, or "
                "imagereward.images.reading.set_max_pixels())"
            )
        from torchvision.transforms import v2

        image = v2.functional.resize(image, [height, width], v2.InterpolationMode.BICUBIC)
        top, left = self._offset(height), self._offset(width)
        return _to_tensor(image.crop((left, top, left + self.size, top + self.size)).convert("RGB"))

    def resize(self, pixels_B_3_H_W: torch.Tensor) -> torch.Tensor:
        """The differentiable path: float [B, 3, H, W] in [0, 1] to [B, 3, size, size].

        In [0, 1] again, except for "pad", which keeps bicubic overshoot as HPS does.
        """
        import torch.nn.functional as F

        height, width = pixels_B_3_H_W.shape[-2:]
        if self.resizing == "pad":
            scale = self.size / max(height, width)
            target = [max(1, round(height * scale)), max(1, round(width * scale))]
        else:
            target = self._short_side(height, width)
        x = pixels_B_3_H_W
        if target != [height, width]:
            x = F.interpolate(x, target, mode="bicubic", antialias=True, align_corners=False)
        if self.resizing == "pad":
            pad_h, pad_w = self.size - target[0], self.size - target[1]
            return F.pad(x, (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2))
        top, left = self._offset(target[0]), self._offset(target[1])
        # Bicubic overshoots at edges; 8-bit images cannot, so neither may this path.
        return x[..., top : top + self.size, left : left + self.size].clamp(0, 1)

    def normalize(self, pixels_B_3_S_S: torch.Tensor) -> torch.Tensor:
        """uint8 in [0, 255] or float in [0, 1] to the model's input, float32 (float64 stays)."""
        import torch

        from imagereward.precision import full_precision

        x = pixels_B_3_S_S
        x = x.float() / 255 if x.dtype == torch.uint8 else full_precision(x)
        mean, std = (x.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std

    def _short_side(self, height: int, width: int) -> list[int]:
        if height <= width:
            return [self.size, int(self.size * width / height)]
        return [int(self.size * height / width), self.size]

    def _offset(self, length: int) -> int:
        rest = length - self.size
        return rest // 2 if self.resizing == "transformers" else round(rest / 2)


def eight_bits(image: PIL.Image.Image, where: str) -> PIL.Image.Image:
    """The image with deeper greys scaled to 8 bits; 8-bit images unchanged.

    Pillow's own conversion of 16-bit greys to RGB clips at 255, which turns nearly all of them white. Whole
    numbers of 32 bits (mode "I") have no range of their own: up to 255 they are taken as 8 bits, as the
    original takes them, else as 16.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ImageReadError(f"{where} has grey values {low}..{high}; expected 0..65535")
        if image.mode == "I" and high <= 255:
            return _grey(values, image)
        scaled = values.astype(np.uint32)  # 65535 * 255 + 32767 fits; 64 bits would take twice the memory
        scaled *= 255
        scaled += 32767
        scaled //= 65535
        return _grey(scaled, image)
    if image.mode in ("La", "RGBa"):  # premultiplied alpha, which Pillow cannot convert to RGB
        return image.convert(image.mode.upper())
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ImageReadError(f"{where} has float values outside [0, 1]")
        return _grey(np.rint(values * 255), image)
    return image


def _grey(values_H_W: np.ndarray, image: PIL.Image.Image) -> PIL.Image.Image:
    """A grey image of these values in 0..255, with the EXIF block of `image`, which holds its orientation."""
    grey = PIL.Image.fromarray(values_H_W.astype(np.uint8))
    grey.info = {name: value for name, value in image.info.items() if name == "exif"}
    return grey


def _to_tensor(image: PIL.Image.Image) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
