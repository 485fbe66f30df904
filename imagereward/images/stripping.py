"""Strips PNG, JPEG and AVIF files of data that no pixel depends on (text, EXIF, XMP, previews, frames).

The chunks and segments that a decoder needs are kept, and the colour profile, which thumbnails in pages pass
on. The EXIF block is returned beside the image, cut to a length that includes its orientation.
"""

import re
import zlib
from collections.abc import Callable
from typing import Protocol

from imagereward.errors import ImageReadError

EXIF_BYTES = 2**16
# A profile over this, decompressed, is left out: Pillow refuses the whole picture for it.
PROFILE_BYTES = 2**20
# Marker codes of JPEG: without a length of their own; start of scan; end of image.
STANDALONE = frozenset((0x01, *range(0xD0, 0xD9)))
SCAN, END = 0xDA, 0xD9
APP0, APP1, APP2, APP14, APP15, COMMENT = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE


class ByteReader(Protocol):
    """A binary file, positioned at its beginning; reading may raise beyond its bounds (`Bounded`)."""

    def read(self, size: int = -1, /) -> bytes:
        """Like a file's."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Like a file's."""


def strip_png(reader: ByteReader, header_only: bool, most_scans: int) -> tuple[bytes, bytes]:
    """(the PNG with chunks that pixels depend on, its EXIF block or b"").

    With `header_only` it ends before the first pixels. Damage is not repaired.
    """
    kept, exif = [reader.read(8)], b""
    while len(head := reader.read(8)) == 8:
        length, chunk_type = int.from_bytes(head[:4], "big"), head[4:]
        if header_only and chunk_type == b"IDAT":
            kept.append(head)
            break
        if chunk_type == b"eXIf" and not exif:
            exif = reader.read(min(length, EXIF_BYTES))
            reader.seek(length - len(exif) + 4, 1)
        elif chunk_type[:1].islower() and chunk_type not in (b"tRNS", b"iCCP"):
            reader.seek(length + 4, 1)
        else:
            body = reader.read(length + 4)
            if chunk_type != b"iCCP" or _is_small_profile(body[:-4]):
                kept += [head, body]
        if chunk_type == b"IEND":
            break
    return b"".join(kept), exif


def strip_jpeg(reader: ByteReader, header_only: bool, most_scans: int) -> tuple[bytes, bytes]:
    """(the JPEG with segments that pixels depend on, its first EXIF block, or b"").

    JFIF and Adobe segments stay: they say how colours are coded. With `header_only` it ends where the first
    scan would begin. Raises ImageReadError for more than `most_scans` scans.
    """
    kept, exif = [reader.read(2)], b""
    while (code := _next_marker(reader)) is not None:
        marker = bytes((0xFF, code))
        if code in STANDALONE:
            continue
        if code == SCAN:
            rest = b"" if header_only else reader.read()
            if (scans := _scans(reader, rest)) > most_scans:
                raise ImageReadError(
                    f"is a JPEG of {scans} scans, which takes long to decode; at most {most_scans} are read. "
                    "Save it anew"
                )
            kept += [marker, rest] if rest else [marker, b"\0\x0c\x03\x01\0\x02\x11\x03\x11\0\x3f\0"]
            break
        if code == END:
            kept.append(marker)
            break
        size = reader.read(2)
        body = reader.read(max(0, int.from_bytes(size, "big") - 2))
        if code == APP1 and body.startswith(b"Exif\0") and not exif:
            exif = body[:EXIF_BYTES]
        profile = code == APP2 and body.startswith(b"ICC_PROFILE\0")
        if profile or code in (APP0, APP14) or not (APP0 <= code <= APP15 or code == COMMENT):
            kept += [marker, size, body]
    return b"".join(kept), exif


_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)


def _scans(reader: ByteReader, rest: bytes) -> int:
    """The scans of a JPEG, of which `rest` is what follows the marker of the first.

    Segments are skipped by their length: a comment may hold the bytes of any marker. Behind the end there may
    be anything, such as the video of a moving photo.
    """
    scans, at = 1, int.from_bytes(rest[:2], "big")
    while (found := _MARKER.search(rest, at)) is not None and (code := found[1][0]) != END:
        reader.read(0)  # raises once the time is over
        at = found.end()
        if code not in STANDALONE:
            at += int.from_bytes(rest[at : at + 2], "big")
        scans += code == SCAN
    return scans


def strip_avif(reader: ByteReader, header_only: bool, most_scans: int) -> tuple[bytes, bytes]:
    """(the AVIF or HEIF with its EXIF block under a type that nothing reads, b"").

    These formats store the orientation outside EXIF (irot, imir). `header_only` has no effect.
    """
    return EXIF_ITEM.sub(rb"\1none", reader.read()), b""


# The entry of an EXIF block in the list of items: version 2 or 3, flags, number and protection of the item.
EXIF_ITEM = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)


def strip_for(beginning: bytes) -> Callable[[ByteReader, bool, int], tuple[bytes, bytes]] | None:
    """The function for a file with this beginning (12 bytes): PNG, JPEG or AVIF; None for others."""
    if beginning.startswith(b"\x89PNG\r\n\x1a\n"):
        return strip_png
    if beginning.startswith(b"\xff\xd8\xff"):
        return strip_jpeg
    return strip_avif if beginning[4:8] == b"ftyp" else None


def _next_marker(reader: ByteReader) -> int | None:
    """The code of the next marker, past fill bytes and whatever else lies before it; None at the end."""
    before = b""
    while byte := reader.read(1):
        if before == b"\xff" and byte not in (b"\0", b"\xff"):
            return byte[0]
        before = byte
    return None


def _is_small_profile(body: bytes) -> bool:
    unpacked = zlib.decompressobj()
    try:
        unpacked.decompress(body.partition(b"\0")[2][1:], PROFILE_BYTES)
    except zlib.error:
        return False
    return not unpacked.unconsumed_tail
