"""Collects the texts of an image file that may hold a prompt: PNG text, EXIF, XMP, comments.

Reads files in bounded pieces and does not decode pixels.
"""

import io
import re
from typing import BinaryIO

from imagereward.errors import ImageReadError
from imagereward.generation_metadata.entries import MOST_TEXT, Entry, decode
from imagereward.generation_metadata.exif import read_exif
from imagereward.generation_metadata.png import SIGNATURE, read_png
from imagereward.generation_metadata.xmp import read_xmp
from imagereward.images.encoded import open_metadata
from imagereward.images.stripping import strip_avif

MOST_SEGMENTS = 4096
MOST_AVIF = 2**26
# The start of an AVIF's EXIF block: a four-byte offset, an optional name, and TIFF's header.
AVIF_EXIF = re.compile(rb"\0\0\0[\0\x06](?:Exif\0\0)?(II\*\0|MM\0\*)")
JPEG_EXIF, JPEG_XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


def read_entries(stream: BinaryIO) -> list[Entry]:
    """All texts of the image in `stream`, in the order of the file. Empty for a file that is no image."""
    start = stream.read(12)
    if start.startswith(SIGNATURE):
        stream.seek(len(SIGNATURE))
        return [entry for found in read_png(stream) for entry in _of_png(found)]
    if start.startswith(b"\xff\xd8"):
        stream.seek(2)
        return _jpeg(stream)
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return _webp(stream)
    if start[:4] in (b"II*\0", b"MM\0*"):
        return read_exif(_reader(stream))
    stream.seek(0)
    return _avif(stream) if start[4:8] == b"ftyp" else _other(stream)


def _of_png(found: Entry | bytes) -> list[Entry]:
    if isinstance(found, bytes):
        return _exif(found)
    return read_xmp(found.text) if found.key == "XML:com.adobe.xmp" else [found]


def _exif(block: bytes) -> list[Entry]:
    if block.startswith(JPEG_EXIF):  # a prefix that WebP and PNG should not have, but often do
        block = block[len(JPEG_EXIF) :]
    return read_exif(lambda offset, size: block[offset : offset + size])


def _reader(stream: BinaryIO):
    def read(offset: int, size: int) -> bytes:
        stream.seek(offset)
        return stream.read(size)

    return read


def _jpeg(stream: BinaryIO) -> list[Entry]:
    exif, entries = b"", []
    for _ in range(MOST_SEGMENTS):
        marker = stream.read(2)
        if marker == b"\xff\xff":  # padding
            stream.seek(-1, io.SEEK_CUR)
            continue
        if len(marker) < 2 or marker[0] != 0xFF or marker[1] in (0xDA, 0xD9):  # pixels or the end
            break
        if marker[1] == 0x01 or 0xD0 <= marker[1] <= 0xD7:  # markers without a length
            continue
        data = stream.read(max(0, int.from_bytes(stream.read(2), "big") - 2))
        if marker[1] == 0xE1 and data.startswith(JPEG_EXIF) and len(exif) < MOST_TEXT:
            exif += data[len(JPEG_EXIF) :]
        elif marker[1] == 0xE1 and data.startswith(JPEG_XMP):
            entries += read_xmp(data[len(JPEG_XMP) :])
        elif marker[1] == 0xFE:
            entries.append(Entry("comment", decode(data), "JPEG"))
    return _exif(exif) + entries


def _webp(stream: BinaryIO) -> list[Entry]:
    entries: list[Entry] = []
    for _ in range(MOST_SEGMENTS):
        header = stream.read(8)
        if len(header) < 8:
            break
        length = int.from_bytes(header[4:], "little")
        if header[:4] not in (b"EXIF", b"XMP "):
            stream.seek(length + length % 2, 1)
        elif length > 2 * MOST_TEXT:
            entries.append(Entry("", "", header[:4].decode().strip(), f"it has {length} bytes"))
            stream.seek(length + length % 2, 1)
        else:
            data = stream.read(length)
            stream.seek(length % 2, 1)
            entries += _exif(data) if header[:4] == b"EXIF" else read_xmp(data)
    return entries


def _avif(stream: BinaryIO) -> list[Entry]:
    """AVIF and HEIF. Searches the EXIF block's header, since Pillow would parse the block without bounds."""
    data = stream.read(MOST_AVIF)
    stripped, _ = strip_avif(io.BytesIO(data), True, 0)
    found = AVIF_EXIF.search(data) if stripped != data else None
    exif = _exif(data[found.start(1) :]) if found else []
    return exif + _other(io.BytesIO(stripped))


def _other(stream: BinaryIO) -> list[Entry]:
    """GIF and other formats: the metadata that Pillow finds when it opens them."""
    try:
        with open_metadata(stream) as image:
            info = dict(image.info)
    except ImageReadError:
        return []
    entries: list[Entry] = []
    if isinstance(exif := info.get("exif"), bytes):
        entries += _exif(exif)
    if isinstance(xmp := info.get("xmp"), bytes):
        entries += read_xmp(xmp)
    if isinstance(comment := info.get("comment"), bytes):
        entries.append(Entry("comment", decode(comment[:MOST_TEXT]), "GIF"))
    return entries
