"""The few text fields of EXIF that generators use, read with bounds on entries and bytes.

A hostile block can list tens of thousands of entries; only the ones below are looked at.
"""

import unicodedata
from collections.abc import Callable

from imagereward.generation_metadata.entries import MOST_TEXT, Entry, decode

Read = Callable[[int, int], bytes]  # (offset, size) -> that many bytes of the TIFF block, or fewer

MOST_ENTRIES = 1024
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
FIELDS = {
    0x010E: "ImageDescription",
    0x010F: "Make",
    0x0110: "Model",
    0x9C9C: "XPComment",
    USER_COMMENT: "UserComment",
}
# Exposure time, aperture, sensitivity, time of exposure, focal length, lens: a camera took the picture.
CAMERA = {0x829A, 0x829D, 0x8827, 0x9003, 0x920A, 0xA434}
CAMERA_KEY = "camera"  # the key of the entry that says so


def read_exif(read: Read) -> list[Entry]:
    """The text fields of the first directory and of its EXIF directory; none if there is no TIFF block."""
    header = read(0, 8)
    orders = {b"II*\0": "little", b"MM\0*": "big"}
    if len(header) < 8 or header[:4] not in orders:
        return []
    order = orders[header[:4]]
    entries, below = _directory(read, int.from_bytes(header[4:], order), order)  # type: ignore[arg-type]
    if below is not None:
        entries += _directory(read, below, order)[0]
    return entries


def _directory(read: Read, offset: int, order) -> tuple[list[Entry], int | None]:
    """(fields, the offset of the EXIF directory) of the directory at `offset`."""
    count = min(int.from_bytes(read(offset, 2), order), MOST_ENTRIES)
    table = read(offset + 2, 12 * count)
    entries: list[Entry] = []
    below = None
    for at in range(0, len(table) - 11, 12):
        tag, kind = (int.from_bytes(table[at + i : at + i + 2], order) for i in (0, 2))
        size, value = (int.from_bytes(table[at + i : at + i + 4], order) for i in (4, 8))
        if tag == EXIF_IFD:
            below = value
        elif tag in CAMERA:
            entries.append(Entry(CAMERA_KEY, "", "EXIF"))
        elif tag in FIELDS and kind in (1, 2, 7):  # bytes, ASCII, undefined: one byte each
            if size > MOST_TEXT:
                problem = f"the text has {size} bytes, more than {MOST_TEXT}"
                entries.append(Entry(FIELDS[tag], "", "EXIF", problem))
                continue
            data = table[at + 8 : at + 8 + size] if size <= 4 else read(value, size)
            entries.append(_field(tag, data))
    return entries, below


def _field(tag: int, data: bytes) -> Entry:
    try:
        if tag == USER_COMMENT:
            text = _user_comment(data)
        else:
            text = data.decode("utf-16-le") if FIELDS[tag].startswith("XP") else decode(data)
    except UnicodeDecodeError as error:
        return Entry(FIELDS[tag], "", "EXIF", f"the text cannot be decoded: {error}")
    return Entry(FIELDS[tag], text.strip("\0 \t\r\n"), "EXIF")


def _user_comment(data: bytes) -> str:
    """A user comment: eight bytes that name the encoding, then text."""
    code, text = data[:8], data[8:]
    if code == b"UNICODE\0":
        return _utf16(text)
    if code in (b"ASCII\0\0\0", b"\0" * 8):
        return decode(text)
    return decode(data)  # writers that leave the eight bytes out


def _utf16(data: bytes) -> str:
    """UTF-16 with a byte order mark or without; without, the order that gives more usual characters."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    data = data[: len(data) // 2 * 2]
    # Text in ASCII or UTF-8 under the wrong name has no zero bytes and would be read as rare characters.
    if data and b"\0" not in data and data.isascii():
        return data.decode("ascii")

    def usual(codec: str) -> int:
        text = data[:4096].decode(codec, "replace")
        return sum(2 * each.isascii() + (unicodedata.category(each) in ("Ll", "Lu", "Lo")) for each in text)

    little = usual("utf-16-le") > usual("utf-16-be")  # on a tie big-endian, as the web UI writes
    return data.decode("utf-16-le" if little else "utf-16-be")
