"""Reads the texts of a PNG file chunk by chunk, without decoding pixels.

Pillow stops at IDAT unless the pixels are decoded, keeps only the last of several texts with one key, and
refuses files with long texts.
"""

import zlib
from collections.abc import Iterator
from typing import BinaryIO

from imagereward.generation_metadata.entries import MOST_TEXT, Entry, decode

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
MOST_CHUNKS = 2**17
MOST_TEXTS = 64


def read_png(stream: BinaryIO) -> Iterator[Entry | bytes]:
    """Yield texts as entries, and EXIF as the bytes of its TIFF block.

    stream   positioned at the first chunk, behind the signature
    """
    texts = 0
    for _ in range(MOST_CHUNKS):
        header = stream.read(8)
        if len(header) < 8 or header[4:] == b"IEND":
            return
        length, chunk_type = int.from_bytes(header[:4], "big"), header[4:]
        if chunk_type not in (*TEXTS, b"eXIf"):
            stream.seek(length + 4, 1)
            continue
        texts += 1
        if texts > MOST_TEXTS:
            yield Entry("", "", "PNG text", f"the file has more than {MOST_TEXTS} texts")
            return
        data = stream.read(min(length, MOST_TEXT + 1024))
        if length > len(data):
            key = decode(data[:79].partition(b"\0")[0])
            yield Entry(key, "", "PNG text", f"the text has {length} bytes, more than {MOST_TEXT}")
            stream.seek(length - len(data) + 4, 1)
        elif zlib.crc32(chunk_type + data) != int.from_bytes(stream.read(4), "big"):
            yield Entry(decode(data[:79].partition(b"\0")[0]), "", "PNG text", "the text is damaged")
        else:
            yield data if chunk_type == b"eXIf" else _text(chunk_type, data)


def _text(chunk_type: bytes, data: bytes) -> Entry:
    key, _, rest = data.partition(b"\0")
    compressed = chunk_type == b"zTXt"
    if chunk_type == b"iTXt":
        compressed = rest[:1] == b"\1"
        parts = rest[2:].split(b"\0", 2)
        rest = parts[2] if len(parts) == 3 else b""
    elif compressed:
        rest = rest[1:]  # the compression method
    if compressed:
        decompressor = zlib.decompressobj()
        try:
            rest = decompressor.decompress(rest, MOST_TEXT + 1)
        except zlib.error as error:
            return Entry(decode(key), "", "PNG text", f"the text cannot be decompressed: {error}")
    if len(rest) > MOST_TEXT:
        return Entry(decode(key), "", "PNG text", f"the text has more than {MOST_TEXT} bytes")
    # The standard says Latin-1 for tEXt; several programs write UTF-8.
    return Entry(decode(key), decode(rest), "PNG text")
