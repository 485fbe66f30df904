"""From whatever a caller calls an image to the pixels a model takes.

There are two paths and one set of numbers. The **PIL path** (`Preprocess.pixels`) repeats what the
original implementations do, bit for bit, including their resizing in the image's own mode. The
**tensor path** (`Preprocess.resize`) does the same geometry on float tensors, antialiased and
differentiable, for rewards inside training loops. The PIL path rounds to 8 bits after resizing, and
clips pixel noise between its two passes; `tests/test_images.py` measures the distance: about one level
of 255 at most on smooth pictures.
"""

import contextlib
import io
import math
import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from imagereward.errors import ImageNotFound, ImageReadError, ImageTypeError, InputError

ImageLike = str | os.PathLike | bytes | PIL.Image.Image | np.ndarray | torch.Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Up to this many images are decoded in full before the model starts, so that a damaged file costs
# no model time. At 8 bits and 224 pixels they take 77 MB (four times that for HPS, which pads as float).
DECODE_AHEAD = 512


@dataclass(frozen=True)
class Preprocess:
    """How one scorer turns an image into its input: facts, and the two paths that use them.

    `recipe` says whose order of operations is followed:

    - `"clip"`: resize the short side in the image's own mode (bicubic, antialiased), centre crop,
      then convert to RGB. ImageReward, BLIP, CLIP and Aesthetic.
    - `"transformers"`: convert to RGB first; crop offsets rounded down. PickScore.
    - `"pad"`: convert to RGB, resize the *long* side as float, pad with black to a square. HPS.

    Calling it on a PIL image gives the normalised float32 tensor [3, size, size].
    """

    size: int = 224
    recipe: Literal["clip", "transformers", "pad"] = "clip"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if self.recipe not in ("clip", "transformers", "pad"):
            raise InputError(f"recipe={self.recipe!r}: expected clip, transformers or pad")
        if type(self.size) is not int or self.size < 1:
            raise InputError(f"size={self.size!r}: expected a whole number of pixels")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(isinstance(value, (int, float)) for value in values):
                raise InputError(f"{name}={values!r}: expected three numbers")

    def __call__(self, image: PIL.Image.Image) -> torch.Tensor:
        return self.normalize(self.pixels(_standard_mode(image, "image"))[None])[0]

    def pixels(self, image: PIL.Image.Image) -> torch.Tensor:
        """The exact path: a PIL image to [3, size, size], uint8 where the recipe rounds."""
        if self.recipe == "pad":
            return self.resize(_to_tensor(image.convert("RGB"))[None].float() / 255)[0]
        if self.recipe == "transformers":
            image = image.convert("RGB")
        height, width = self._short_side(image.height, image.width)
        if height * width > (PIL.Image.MAX_IMAGE_PIXELS or math.inf):
            raise ImageReadError(
                f"an image of {image.width} x {image.height} is too narrow: with its short side at "
                f"{self.size} it would have {height * width} pixels "
                "(raise PIL.Image.MAX_IMAGE_PIXELS if you trust it)"
            )
        image = v2.functional.resize(image, [height, width], v2.InterpolationMode.BICUBIC)
        top, left = self._offset(height), self._offset(width)
        return _to_tensor(image.crop((left, top, left + self.size, top + self.size)).convert("RGB"))

    def resize(self, pixels_B_3_H_W: torch.Tensor) -> torch.Tensor:
        """The differentiable path: float [B, 3, H, W] in [0, 1] to [B, 3, size, size].

        In [0, 1] again, except for "pad", which keeps bicubic overshoot as HPS does.
        """
        height, width = pixels_B_3_H_W.shape[-2:]
        if self.recipe == "pad":
            scale = self.size / max(height, width)
            target = [max(1, round(height * scale)), max(1, round(width * scale))]
        else:
            target = self._short_side(height, width)
        x = pixels_B_3_H_W
        if target != [height, width]:
            x = F.interpolate(x, target, mode="bicubic", antialias=True, align_corners=False)
        if self.recipe == "pad":
            pad_h, pad_w = self.size - target[0], self.size - target[1]
            return F.pad(x, (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2))
        top, left = self._offset(target[0]), self._offset(target[1])
        # Bicubic overshoots at edges; 8-bit images cannot, so neither may this path.
        return x[..., top : top + self.size, left : left + self.size].clamp(0, 1)

    def normalize(self, pixels_B_3_S_S: torch.Tensor) -> torch.Tensor:
        """uint8 in [0, 255] or float in [0, 1] to the model's input, float32 (float64 stays)."""
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
        return rest // 2 if self.recipe == "transformers" else round(rest / 2)


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """float32, unless it is float64, which gradient checks need."""
    return x if x.dtype == torch.float64 else x.float()


def is_many(images) -> bool:
    """Whether this is several images: a list, a tuple, or a 4-D array or tensor of them."""
    return isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4


def as_list(images) -> list:
    """One image or many to a list."""
    return list(images) if is_many(images) else [images]


def name_of(image: ImageLike, index: int) -> str:
    """How messages and tables call an image: its path, or its place in the list."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"image {index}"


def identity(image: ImageLike):
    """Equal for two list entries that are certainly the same image."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else id(image)


def read_image(image: ImageLike, index: int = 0) -> PIL.Image.Image:
    """Decode one image fully, in its own mode; 16-bit modes are scaled to 8 bits.

    Takes a path, encoded bytes, a PIL image, an array [H, W], [H, W, 1|3|4] of uint8, or a tensor
    [1|3|4, H, W], float in [0, 1] or uint8. Of an animation the first frame counts. Orientation
    tags are not applied, as in the original.

    Raises ImageNotFound, ImageReadError (empty, damaged, or too large to decode safely: Pillow's
    `MAX_IMAGE_PIXELS` decides) or ImageTypeError, each naming `index` and the file.
    """
    where = f"images[{index}]" + (f" ({image})" if isinstance(image, (str, os.PathLike)) else "")
    if isinstance(image, np.ndarray):
        return _from_array(image, where)
    if isinstance(image, torch.Tensor):
        return _from_tensor(image, where)
    # An image that the caller opened stays open: they may want its next frame.
    given = contextlib.nullcontext(image) if isinstance(image, PIL.Image.Image) else None
    with given or _opened(image, where) as opened:
        try:
            opened.load()
        except Exception as error:  # decoders raise whatever they like on damaged data
            raise ImageReadError(f"{where} is damaged and cannot be decoded: {error}") from error
        return _standard_mode(opened, where)


def check_image(image: ImageLike, index: int = 0) -> None:
    """The cheap half of `read_image`: does it exist, is its header an image, is its type known."""
    where = f"images[{index}]" + (f" ({image})" if isinstance(image, (str, os.PathLike)) else "")
    if isinstance(image, np.ndarray):
        _check_array(image, where)
    elif isinstance(image, torch.Tensor):
        _check_tensor(image, where)
    else:
        opened = _opened(image, where)
        if opened is not image:
            opened.close()


def load_pixels(
    images: Sequence[ImageLike],
    preprocesses: Sequence[Preprocess],
    indices: Sequence[int] | None = None,
) -> Generator[tuple[torch.Tensor, ...], None, None]:
    """For each of `indices` (default: all), in order, the image's pixels under each of `preprocesses`.

    One decode serves all preprocesses. Every header is checked and the first `DECODE_AHEAD` images
    are decoded before anything is yielded; later ones are decoded by threads while the consumer works.
    """
    waiting = deque(range(len(images)) if indices is None else indices)
    for index in waiting:
        check_image(images[index], index)

    def work(index: int) -> tuple[torch.Tensor, ...]:
        image = read_image(images[index], index)
        return tuple(preprocess.pixels(image) for preprocess in preprocesses)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "imagereward-decode") as pool:
        try:
            ahead = deque(
                pool.submit(work, waiting.popleft()) for _ in range(min(DECODE_AHEAD, len(waiting)))
            )
            for future in ahead:
                future.result()
            while ahead:
                if waiting:
                    ahead.append(pool.submit(work, waiting.popleft()))
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _opened(image, where: str) -> PIL.Image.Image:
    if isinstance(image, PIL.Image.Image):
        if 0 in image.size:
            raise ImageReadError(f"{where} has no pixels: its size is {image.size}")
        return image
    if isinstance(image, (bytes, bytearray, memoryview)):
        if not len(image):
            raise ImageReadError(f"{where} is empty: 0 bytes")
        source: io.BytesIO | Path = io.BytesIO(image)
    elif isinstance(image, (str, os.PathLike)):
        if str(image).startswith(("http://", "https://")):
            raise ImageReadError(f"{where} is a URL; this library fetches none: download it first")
        source = _existing(image, where)
    else:
        raise ImageTypeError(
            f"{where} is a {type(image).__name__}; expected a path, bytes, a PIL image, "
            "a numpy array [H, W, 3] of uint8 or a torch tensor [3, H, W] in [0, 1]"
        )
    try:
        return PIL.Image.open(source)
    except PIL.Image.DecompressionBombError as error:
        raise ImageReadError(
            f"{where} would decode to too many pixels: {error} "
            "(raise PIL.Image.MAX_IMAGE_PIXELS if you trust it)"
        ) from error
    except PIL.UnidentifiedImageError as error:
        raise ImageReadError(f"{where} is not an image that Pillow can read") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageReadError(f"{where} cannot be read: {error}") from error


def _existing(path: str | os.PathLike, where: str) -> Path:
    try:
        source = Path(path).expanduser()
        size = source.stat().st_size
    except FileNotFoundError as error:
        raise ImageNotFound(f"{where} does not exist") from error
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such home, a null byte
        raise ImageReadError(f"{where} is not a usable path: {error}") from error
    if source.is_dir():
        raise ImageReadError(f"{where} is a directory; pass the files in it")
    if size == 0:
        raise ImageReadError(f"{where} is empty: 0 bytes")
    return source


def _standard_mode(image: PIL.Image.Image, where: str) -> PIL.Image.Image:
    """8-bit images as they are; deeper greys scaled to 8 bits.

    Pillow's own conversion of 16-bit greys to RGB clips at 255, which turns nearly all of them white.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageReadError(f"{where} has grey values {values.min()}..{values.max()}; expected 0..65535")
        return PIL.Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("La", "RGBa"):  # premultiplied alpha, which Pillow cannot convert to RGB
        return image.convert(image.mode.upper())
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ImageReadError(f"{where} has float values outside [0, 1]")
        return PIL.Image.fromarray(np.rint(values * 255).astype(np.uint8))
    return image


def _check_array(array: np.ndarray, where: str) -> None:
    if array.dtype != np.uint8:
        raise ImageTypeError(f"{where} is a numpy array of {array.dtype}; expected uint8 [H, W, 3] in 0..255")
    grey = array.ndim == 2
    if not (grey or (array.ndim == 3 and array.shape[2] in (1, 3, 4))) or 0 in array.shape:
        raise InputError(f"{where} has shape {array.shape}; expected [H, W, 3] (or 1 or 4 channels)")


def _from_array(array: np.ndarray, where: str) -> PIL.Image.Image:
    _check_array(array, where)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return PIL.Image.fromarray(np.ascontiguousarray(array))


def _check_tensor(tensor: torch.Tensor, where: str) -> None:
    if not tensor.is_floating_point() and tensor.dtype != torch.uint8:
        raise ImageTypeError(f"{where} is a tensor of {tensor.dtype}; expected float or uint8")
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4) or tensor.numel() == 0:
        raise InputError(f"{where} has shape {tuple(tensor.shape)}; expected [3, H, W] (or 1 or 4 channels)")


def _from_tensor(tensor: torch.Tensor, where: str) -> PIL.Image.Image:
    _check_tensor(tensor, where)
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()
        low, high = tensor.min(), tensor.max()
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN fails both
            raise InputError(f"{where} has values in [{low:.3g}, {high:.3g}]; expected [0, 1]")
        tensor = tensor.mul(255).round().clamp(0, 255).to(torch.uint8)
    return _from_array(tensor.permute(1, 2, 0).numpy(), where)


def _to_tensor(image: PIL.Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
