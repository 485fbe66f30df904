"""Reads images given as paths, bytes, arrays, tensors or PIL images, and decodes many ahead of a model."""

import os
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import PIL.Image
import torch
from PIL import Image

from imagereward.errors import ImageNotFound, ImageReadError, ImageTypeError, InputError
from imagereward.images.ahead import Ahead
from imagereward.images.encoded import Encoded, max_pixels, open_encoded, read_file, set_max_pixels
from imagereward.images.preprocess import eight_bits
from imagereward.images.processor import Processor, bytes_of

__all__ = [
    "ImageLike",
    "address_scheme",
    "as_list",
    "check_image",
    "identity",
    "is_many",
    "listed",
    "load_pixels",
    "max_pixels",
    "name_of",
    "read_encoded",
    "read_image",
    "set_max_pixels",
    "size_of",
]

ImageLike = str | os.PathLike | bytes | PIL.Image.Image | np.ndarray | torch.Tensor

# Up to this many images are decoded in full before the model starts, so that a damaged file costs
# no model time. At 8 bits and 224 pixels they take 77 MB (four times that for HPS, which pads as float).
DECODE_AHEAD = 512
# Fewer, if they take more bytes than this: a judge or a function gets images at their own size.
DECODE_AHEAD_BYTES = 2**30
# Characters of a path in messages.
NAME_LENGTH = 300
# What an address is, where a path is expected.
FETCH = "is a URL; this library fetches none: download it first"
ADDRESSES = {
    "http": FETCH,
    "https": FETCH,
    "file": "is a file: URL; expected a path: take off file:// and undo its %-escapes",
    "data": "is a data: URL; expected bytes: base64.b64decode(text.partition(',')[2])",
}
ELSEWHERE = "is an address ({scheme}:); expected a path on this machine, or bytes: download or mount it first"


def is_many(images) -> bool:
    """Whether this is several images: a list, a tuple, or a 4-D array or tensor of them."""
    return isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4


def as_list(images) -> list:
    """A list of images, from one image or several."""
    return list(images) if is_many(images) else [images]


def listed(images) -> list:
    """One image or many, or any iterable of them, to a list: [H, W, 3] is one image and not H of them."""
    single = isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike, PIL.Image.Image))
    array = hasattr(images, "ndim")
    return as_list(images) if single or array or not isinstance(images, Iterable) else list(images)


def name_of(image: ImageLike, index: int) -> str:
    """The name of an image in messages and tables: its path, or its index in the list."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"image {index}"


def identity(image: ImageLike):
    """Equal for two list entries that are certainly the same image."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else id(image)


def read_image(image: ImageLike, index: int = 0) -> PIL.Image.Image:
    """Decode one image fully, in its own mode; deeper greys are scaled to 8 bits (`eight_bits`).

    Takes a path, encoded bytes, a PIL image, an array [H, W], [H, W, 1|3|4] of uint8, or a tensor
    [1|3|4, H, W], float in [0, 1] or uint8. Of an animation the first frame counts. Orientation tags are
    not applied, as in the original; `orientation.upright` does that.

    Paths and bytes are decoded within the bounds of `images/encoded.py`; a PIL image that you opened is
    decoded as it is, whatever its format. Raises ImageNotFound, ImageReadError (empty, damaged, of a format
    that is not read, over a bound) or ImageTypeError, each naming `index` and the file.
    """
    where = _where(image, index)
    if isinstance(image, np.ndarray):
        return _from_array(image, where)
    if isinstance(image, torch.Tensor):
        return _from_tensor(image, where)
    if isinstance(image, PIL.Image.Image):  # it stays open: the caller may want its next frame
        _check_picture(image, where)
        try:
            image.load()
        except Exception as error:  # decoders raise whatever they like on damaged data
            raise ImageReadError(f"{where} is damaged and cannot be decoded: {error}") from error
        return eight_bits(image, where)
    with _encoded(image, where) as opened:
        return eight_bits(opened.decoded(), where)


def check_image(image: ImageLike, index: int = 0) -> None:
    """Check existence, header and type of an image without decoding it. Raises as `read_image` does."""
    where = _where(image, index)
    if isinstance(image, np.ndarray):
        _check_array(image, where)
    elif isinstance(image, torch.Tensor):
        _check_tensor(image, where)
    elif isinstance(image, PIL.Image.Image):
        _check_picture(image, where)
    else:
        with _encoded(image, where, header_only=True):
            pass


def size_of(image: str | os.PathLike | bytes, index: int = 0) -> tuple[int, int]:
    """(width, height) in pixels of a path or encoded bytes, by its header. Raises as `check_image` does."""
    with _encoded(image, _where(image, index), header_only=True) as opened:
        return opened.image.size


def read_encoded(path: str | os.PathLike, index: int = 0) -> bytes:
    """The bytes of an image's file, not decoded. Raises ImageNotFound or ImageReadError if it is none."""
    where = _where(path, index)
    try:
        return read_file(path, where)
    except ImageReadError as error:
        # An error that is its own cause would keep the image's bytes until the garbage collector runs.
        if (advice := _advice(path, where)) is None:
            raise
        raise advice from error


def load_pixels(
    images: Sequence[ImageLike],
    processors: Sequence[Processor],
    indices: Sequence[int] | None = None,
) -> Generator[tuple[Any, ...], None, None]:
    """For each of `indices` (default: all), in order, the image as each of `processors` loads it.

    One decode serves all processors. Every header is checked and the first `DECODE_AHEAD` images are decoded
    before anything is yielded, or the first `DECODE_AHEAD_BYTES` of what the processors make of them; later
    ones are decoded by threads while the consumer works.
    """
    places = range(len(images)) if indices is None else indices
    for index in places:
        check_image(images[index], index)
    waiting, ahead = deque(enumerate(places)), Ahead(DECODE_AHEAD_BYTES)

    def work(place: int, index: int) -> tuple[Any, ...]:
        if not ahead.may_decode(place):
            return ()
        image = read_image(images[index], index)
        items = tuple(processor.load(image) for processor in processors)
        ahead.decoded(sum(map(bytes_of, items)))
        return items

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "imagereward-decode") as pool:
        try:
            begun = deque(
                pool.submit(work, *waiting.popleft()) for _ in range(min(DECODE_AHEAD, len(waiting)))
            )
            for future in begun:
                if not ahead.settled(future):
                    break
                future.result()
            while begun:
                if waiting:
                    begun.append(pool.submit(work, *waiting.popleft()))
                items = begun.popleft().result()
                ahead.used(sum(map(bytes_of, items)))
                yield items
        finally:
            ahead.end()
            pool.shutdown(cancel_futures=True)


def _where(image, index: int) -> str:
    """The name of an image in messages; a long text, such as a data: URL, is cut."""
    if not isinstance(image, (str, os.PathLike)):
        return f"images[{index}]"
    name = os.fspath(image)
    return f"images[{index}] ({name[:NAME_LENGTH] + '…' if len(name) > NAME_LENGTH else name})"


@contextmanager
def _encoded(image, where: str, header_only: bool = False) -> Iterator[Encoded]:
    if not isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview)):
        raise ImageTypeError(
            f"{where} is a {type(image).__name__}; expected a path, bytes, a PIL image, "
            "a numpy array [H, W, 3] of uint8 or a torch tensor [3, H, W] in [0, 1]"
        )
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(open_encoded(image, where, header_only))
        except ImageReadError as error:
            # An error that is its own cause would keep the image's bytes until the garbage collector runs.
            if (advice := _advice(image, where)) is None:
                raise
            raise advice from error
        yield opened


def _advice(image, where: str) -> ImageReadError | None:
    """A more helpful error for a URL or another text that is no path; None if there is none."""
    if not isinstance(image, (str, os.PathLike)) or os.path.exists(image):
        return None
    text = os.fspath(image)
    if isinstance(image, os.PathLike):  # pathlib makes one slash of two
        text = re.sub(":/(?!/)", "://", text, count=1)
    if scheme := address_scheme(text):
        return ImageReadError(f"{where} {ADDRESSES.get(scheme, ELSEWHERE).format(scheme=scheme)}")
    if "\\" in text and os.sep == "/":
        return ImageNotFound(
            f"{where} does not exist; paths on this system have no backslashes: write a/b.png"
        )
    return None


def address_scheme(text: str) -> str | None:
    """`https` of `https://…`, `data` of `data:…,…`; None for what may be a path."""
    found = re.match(r"(?:(data):[^,]*,|([A-Za-z][A-Za-z0-9+.-]+)://)", text, re.IGNORECASE)
    return (found[1] or found[2]).lower() if found else None


def _check_picture(image: PIL.Image.Image, where: str) -> None:
    if 0 in image.size:
        raise ImageReadError(f"{where} has no pixels: its size is {image.size}")


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


def to_pil(image_3_H_W: torch.Tensor) -> Image.Image:
    """A tensor [3, H, W] in [0, 1] as an 8-bit PIL image."""
    array = (image_3_H_W.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)
