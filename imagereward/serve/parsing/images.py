"""Decodes the images of a request to pixels, within limits. Runs in threads beside the event loop."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from imagereward.errors import ImageRewardError
from imagereward.images.preprocess import Preprocess
from imagereward.images.processor import Processor, bytes_of
from imagereward.images.reading import read_image, size_of
from imagereward.serve.admission import Reservation
from imagereward.serve.limits import Limits, Refused
from imagereward.serve.meters import DROPPED

NPY_MAGIC = b"\x93NUMPY"
NPY_HEADER = 1024  # bytes; numpy writes 128


def decode(
    images: Sequence[bytes | np.ndarray],
    processors: Sequence[Processor],
    limits: Limits,
    reservation: Reservation,
) -> list[tuple[Any, ...]]:
    """For each image a tuple with what each of `processors` loads: for `Preprocess` uint8 [3, S, S].

    images      encoded files, or arrays uint8 [H, W, 3]
    reservation the request's, which reserves the bytes of each tuple

    Raises Refused: 413 for too many pixels or bytes, 422 naming every image that cannot be read, 429 if the
    server is full, 499 once the client has left.
    """
    decoded, faults, pixels = [], {}, 0
    for index, image in enumerate(images):
        if reservation.closed:
            raise Refused(DROPPED, "the client has disconnected")
        try:
            height, width = image.shape[:2] if isinstance(image, np.ndarray) else size_of(image, index)[::-1]
            pixels += width * height
            _check_pixels(index, width, height, pixels, limits)
            check_resized(index, width, height, processors, limits)
            picture = read_image(image, index)
            decoded.append(tuple(processor.load(picture) for processor in processors))
            reservation.take_decoded(sum(map(bytes_of, decoded[-1])))
        except (ImageRewardError, ValueError) as error:
            faults[index] = str(error).removeprefix(f"images[{index}] ")
    if faults:
        reasons = [f"images[{index}] {reason}" for index, reason in list(faults.items())[:3]]
        more = f" (+{len(faults) - 3} more)" if len(faults) > 3 else ""
        raise Refused(422, "; ".join(reasons) + more, images=faults)
    return decoded


def check_sizes(images: Sequence[bytes | np.ndarray], limits: Limits) -> None:
    """Raises Refused, 413 for too many pixels and 422 naming an image whose header cannot be read."""
    pixels = 0
    for index, image in enumerate(images):
        try:
            height, width = image.shape[:2] if isinstance(image, np.ndarray) else size_of(image, index)[::-1]
        except (ImageRewardError, ValueError) as error:
            reason = str(error).removeprefix(f"images[{index}] ")
            raise Refused(422, f"images[{index}] {reason}", images={index: reason}) from error
        pixels += width * height
        _check_pixels(index, width, height, pixels, limits)


def check_resized(
    index: int, width: int, height: int, processors: Sequence[Processor], limits: Limits
) -> None:
    """Raises Refused, 413, where an image whose short side is resized to a model's size gets too many pixels.

    An image of 3500 x 1 pixels becomes one of 784,000 x 224 before it is cropped.
    """
    for each in processors:
        if isinstance(each, Preprocess) and each.resizing != "pad" and width and height:
            made = each.size**2 * max(width, height) // min(width, height)
            if made > limits.image_pixels:
                reason = (
                    f"of {width} x {height} pixels would be resized to {made} pixels; at most "
                    f"{limits.image_pixels} are made of an image"
                )
                raise Refused(413, f"images[{index}] {reason}", images={index: reason})


def array_of(data: bytes) -> np.ndarray:
    """The array uint8 [N, H, W, C] or [H, W, C] of an .npy file, as a view of `data`; else ValueError."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = header[version](file, max_header_size=NPY_HEADER)
    except Exception as error:  # the header is a Python literal: parsing a hostile one may raise anything
        raise ValueError(f"is no .npy file of version 1 or 2: {type(error).__name__}: {error}") from error
    if dtype != np.uint8 or fortran or not (len(shape) in (3, 4) and all(side > 0 for side in shape)):
        order = "Fortran" if fortran else "C"
        raise ValueError(
            f"is an .npy array of {dtype} {shape} in {order} order; expected uint8 [N, H, W, 3] in C order"
        )
    start, size = file.tell(), int(np.prod(shape, dtype=object))
    if len(data) - start != size:
        raise ValueError(f"is an .npy array of {size} bytes by its header, but {len(data) - start} follow it")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _check_pixels(index: int, width: int, height: int, total: int, limits: Limits) -> None:
    size = f"{width} x {height}"
    if width * height > limits.image_pixels:
        reason = f"has {size} pixels; this server reads at most {limits.image_pixels}"
        raise Refused(413, f"images[{index}] {reason}", images={index: reason})
    if total > limits.request_pixels:
        raise Refused(413, f"more than {limits.request_pixels} pixels in one request: send fewer images")
