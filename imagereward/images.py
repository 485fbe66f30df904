"""From whatever a caller calls an image to a decoded one, and many of them to pixels, ahead of the model."""

import contextlib
import io
import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from imagereward.errors import ImageNotFound, ImageReadError, ImageTypeError, InputError
from imagereward.preprocess import Preprocess, eight_bits

ImageLike = str | os.PathLike | bytes | PIL.Image.Image | np.ndarray | torch.Tensor

# Up to this many images are decoded in full before the model starts, so that a damaged file costs
# no model time. At 8 bits and 224 pixels they take 77 MB (four times that for HPS, which pads as float).
DECODE_AHEAD = 512


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
        return eight_bits(opened, where)


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
