"""Opens encoded images safely: the accepted formats and the bounds on size and decoding time.

Scoring, bulk runs, the server, reports and training all decode here. A picture over one of the bounds is an
ImageReadError of that picture alone:

    FORMATS        formats that are tried at all
    max_pixels()   width x height, checked by the header before anything is decoded
    max_bytes()    size of the encoded picture
    MOST_SCANS     scans of one JPEG
    SECONDS, SECONDS_PER_PIXEL   CPU time of the decoding thread; what it takes on a busy machine is the same
    READS          bytes that a decoder may read, as a multiple of the picture's size

Metadata (text, EXIF, XMP, previews, later frames) is left out before Pillow sees a PNG, JPEG or AVIF: no
pixel depends on it, and parsing it has costs and limits of its own.
"""

import contextlib
import io
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import PIL.Image

from imagereward.errors import ImageNotFound, ImageReadError, InputError
from imagereward.images.bounded import READS, READS_AT_LEAST, Bounded, Deadline
from imagereward.images.stripping import strip_for

# What generators, cameras and converters write. Of Pillow's other formats some start programs (EPS starts
# Ghostscript) and the rest are rare and little tested with hostile input.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
# Read as well where a plugin that the caller imported has registered them in Pillow.
PLUGIN_FORMATS = ("HEIF", "JXL")
MAX_PIXELS_VARIABLE = "IMAGEREWARD_MAX_PIXELS"
# Encoders write 1 to about 70 scans. At 16 megapixels an empty scan costs 10 ms.
MOST_SCANS = 256
# A progressive JPEG takes 0.03 microseconds a pixel, PNG and WebP less, on a CPU of 2020.
SECONDS, SECONDS_PER_PIXEL = 5.0, 1.5e-7
BYTES_PER_PIXEL, BYTES_AT_LEAST = 8, 64 * 2**20
# Between two blocks of this many bytes the time is looked at.
BLOCK = 4096
# Values of one TIFF tag, such as its strips, of each of which Pillow makes an object of 300 bytes.
MOST_PARTS = 2**18


def max_pixels() -> float:
    """Pixels (width x height) up to which a picture is decoded: 179 million, Pillow's limit, by default.

    Decided by `set_max_pixels`, else the environment variable IMAGEREWARD_MAX_PIXELS, else twice
    `PIL.Image.MAX_IMAGE_PIXELS` (None: no limit).
    """
    if given := os.environ.get(MAX_PIXELS_VARIABLE):
        return _whole(given)
    return 2 * PIL.Image.MAX_IMAGE_PIXELS if PIL.Image.MAX_IMAGE_PIXELS else math.inf


def decoding_limits() -> dict[str, Any]:
    """Which images can be decoded here, as facts of a run: {"max_pixels": as text, "formats": names}."""
    return {"max_pixels": str(max_pixels()), "formats": sorted(formats())}


def set_max_pixels(pixels: int) -> None:
    """Decode pictures of up to `pixels` pixels, in this process and in processes that it starts later.

    Sets Pillow's `MAX_IMAGE_PIXELS` and the environment variable IMAGEREWARD_MAX_PIXELS, which worker
    processes inherit.
    """
    pixels = _whole(pixels)
    os.environ[MAX_PIXELS_VARIABLE] = str(pixels)
    PIL.Image.MAX_IMAGE_PIXELS = pixels


def in_home(path: str | os.PathLike) -> Path:
    """The path, with a home folder for a "~" at its beginning; "./~a.png" is the file ~a.png here."""
    text = os.fspath(path)
    return Path(text).expanduser() if text.startswith("~") else Path(text)


def max_bytes() -> float:
    """Bytes up to which an encoded picture is read: 8 a pixel of `max_pixels()`, and at least 64 MiB."""
    return max(BYTES_AT_LEAST, BYTES_PER_PIXEL * max_pixels())


def formats() -> tuple[str, ...]:
    """The formats that are read with this Pillow, by its names."""
    PIL.Image.init()
    return tuple(name for name in FORMATS + PLUGIN_FORMATS if name in PIL.Image.OPEN)


@contextlib.contextmanager
def open_file(path: str | os.PathLike, where: str) -> Iterator[BinaryIO]:
    """A regular file for reading, examined by its descriptor once it is open.

    Raises ImageNotFound, and ImageReadError for a directory, pipe, device or socket, an empty file, and one
    of more than `max_bytes()`. A pipe is never waited for, also one that took the file's place just now.
    """
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    )
    try:
        place = in_home(path)
        _check_regular(os.stat(place).st_mode, where)  # before opening, which alone can act on a device
        descriptor = os.open(place, flags)
    except FileNotFoundError as error:
        raise ImageNotFound(f"{where} does not exist") from error
    except ImageReadError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # too long, no permission, no such home, a null byte
        raise ImageReadError(f"{where} is not a usable path: {error}") from error
    with open(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        _check_regular(found.st_mode, where)
        _check_size(found.st_size, where)
        yield stream


def read_file(path: str | os.PathLike, where: str) -> bytes:
    """The bytes of a picture's file, with the checks of `open_file`."""
    with open_file(path, where) as stream:
        size = os.fstat(stream.fileno()).st_size
        data = stream.read(size + 1)
    if len(data) != size:
        raise ImageReadError(f"{where} changed while it was read: expected {size} bytes")
    return data


@contextlib.contextmanager
def open_encoded(
    source: bytes | bytearray | memoryview | str | os.PathLike, where: str, header_only: bool = False
) -> Iterator["Encoded"]:
    """The picture in `source`, bytes or a path, with its header read; `decoded()` gives its pixels.

    With `header_only` no more of a PNG or JPEG is read than its header, and it cannot be decoded. Of the
    metadata an EXIF block stays, in `image.info["exif"]`. Raises ImageNotFound and ImageReadError.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(source, (str, os.PathLike)):
            stream = stack.enter_context(open_file(source, where))
        else:
            _check_size(memoryview(source).nbytes, where)
            stream = io.BytesIO(source)
        opened = _opened(stream, where, header_only)
        stack.enter_context(opened.image)
        yield opened


@contextlib.contextmanager
def open_metadata(stream: BinaryIO) -> Iterator[PIL.Image.Image]:
    """An image with what Pillow finds of metadata on opening it, within the bounds; ImageReadError.

    For formats that Pillow opens without parsing their metadata.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    _check_size(size, "the image")
    reader = Bounded(stream, size, Deadline(SECONDS))
    try:
        _check_parts(reader)
        reader.seek(0)
        image = PIL.Image.open(reader, formats=formats())  # type: ignore[arg-type]
    except Exception as error:  # parsers raise whatever they like on damaged data
        raise ImageReadError(f"the image {reader.fault() or _explained(error)}") from error
    with image:
        yield image


@dataclass
class Encoded:
    """A picture whose header is read, and what it is read from."""

    image: PIL.Image.Image
    reader: Bounded
    where: str

    def decoded(self) -> PIL.Image.Image:
        """The image with its pixels. Raises ImageReadError for damage and over the bounds."""
        self.reader.deadline.seconds += SECONDS_PER_PIXEL * self.image.width * self.image.height
        self.image.decodermaxblock = BLOCK  # type: ignore[attr-defined]
        try:
            self.image.load()
        except Exception as error:  # decoders raise whatever they like on damaged data
            fault = self.reader.fault() or f"is damaged and cannot be decoded: {error}"
            raise ImageReadError(f"{self.where} {fault}") from error
        return self.image


def _opened(stream: BinaryIO, where: str, header_only: bool) -> Encoded:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    reader, exif = Bounded(stream, size, Deadline(SECONDS)), b""
    try:
        strip = strip_for(reader.read(12))
        reader.seek(0)
        if strip is not None:
            data, exif = strip(reader, header_only, MOST_SCANS)
            reader = Bounded(io.BytesIO(data), len(data), reader.deadline)
        else:
            _check_parts(reader)
            reader.seek(0)
        image = PIL.Image.open(reader, formats=formats())  # type: ignore[arg-type]
        if image.format == "TIFF":
            _check_tiff(image, size)
    except PIL.Image.DecompressionBombError as error:
        raise ImageReadError(f"{where} would decode to too many pixels: {error}{ADVICE}") from error
    except Exception as error:  # parsers raise whatever they like on damaged data
        raise ImageReadError(f"{where} {reader.fault() or _explained(error)}") from error
    if image.width * image.height > max_pixels():
        raise ImageReadError(
            f"{where} would decode to too many pixels: {image.width} x {image.height}, "
            f"and at most {max_pixels():.0f} are read{ADVICE}"
        )
    if exif:
        image.info["exif"] = exif
    return Encoded(image, reader, where)


def _explained(error: Exception) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):
        read = ", ".join(formats())
        return (
            f"is no image in a format that is read here ({read}): not an image, or one with a damaged header"
        )
    return str(error) if isinstance(error, ImageReadError) else f"cannot be read: {error}"


ADVICE = (
    " (if you trust it, raise the limit: --max-pixels of the command, in millions; "
    f"imagereward.images.reading.set_max_pixels(); or the environment variable {MAX_PIXELS_VARIABLE})"
)


def _check_parts(reader: Bounded) -> None:
    """ImageReadError for a TIFF whose first directory has a list of more than `MOST_PARTS` values."""
    head = reader.read(16)
    order: Any = {b"II": "little", b"MM": "big"}.get(head[:2])
    if order is None or not {42, 43} & {*head[2:4]}:
        return
    large = head[2] == 43  # a BigTIFF, as Pillow tells it

    def number(data: bytes) -> int:
        return int.from_bytes(data, order)

    reader.seek(number(head[8:16] if large else head[4:8]))
    size, end = (20, 12) if large else (12, 8)
    for _ in range(number(reader.read(8 if large else 2))):
        entry = reader.read(size)
        if len(entry) < size:
            return  # Pillow says what is wrong
        tag, kind, count = number(entry[:2]), number(entry[2:4]), number(entry[4:end])
        if count > MOST_PARTS and (tag in (273, 324) or kind not in (1, 2, 7)):
            raise ImageReadError(f"is a TIFF with {count} values in tag {tag}; at most {MOST_PARTS} are read")


def _check_tiff(image, size: int) -> None:
    """A TIFF's strips or tiles, as its header declares them, against the picture's and the file's size."""
    tags = image.tag_v2
    tile = int(tags.get(322, 0)) * int(tags.get(323, 0))  # TileWidth, TileLength
    parts = [*tags.get(279, ()), *tags.get(325, ())]  # StripByteCounts, TileByteCounts: both count
    if tile > max_pixels() or sum(parts) > READS * size + READS_AT_LEAST:
        raise ImageReadError("is a TIFF that declares more data in its strips or tiles than it holds")


def _check_regular(mode: int, where: str) -> None:
    if stat.S_ISDIR(mode):
        raise ImageReadError(f"{where} is a directory; pass the files in it")
    if not stat.S_ISREG(mode):
        raise ImageReadError(f"{where} is a pipe, device or socket; expected a file")


def _check_size(size: int, where: str) -> None:
    if size == 0:
        raise ImageReadError(f"{where} is empty: 0 bytes")
    if size > max_bytes():
        raise ImageReadError(
            f"{where} has {size} bytes; at most {max_bytes():.0f} are read, {BYTES_PER_PIXEL} for each pixel "
            f"that is allowed{ADVICE}"
        )


def _whole(pixels: int | str) -> int:
    try:
        number = int(pixels)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise InputError(f"{MAX_PIXELS_VARIABLE}={pixels!r}: expected a whole number of pixels, 1 or more")
    return number


if MAX_PIXELS_VARIABLE in os.environ:  # Pillow has a limit of its own, which would come first
    PIL.Image.MAX_IMAGE_PIXELS = int(max_pixels())
