"""Reads the text fields of EXIF that generators use, with bounds on entries and bytes.

A hostile block can list tens of thousands of entries; the reader stops after 1024 in a directory.
"""

import unicodedata
from collections.abc import Callable

from imagereward.generation_metadata.entries import MOST_TEXT, Entry, UnclearPrompt, decode

Read = Callable[[int, int], bytes]  # (offset, size) -> at most `size` bytes of the TIFF block

MOST_ENTRIES = 1024
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
FIELDS = {
    0x010E: "ImageDescription",
    0x010F: "Make",
    0x0110: "Model",
    0x9C9C: "XPComment",
    USER_COMMENT: "UserComment",
}
# Software, date, exposure time, aperture, sensitivity, time of exposure, focal length, lens: fields that
# cameras and editors write, but not scripts that store a prompt.
CAMERA = {0x0131, 0x0132, 0x829A, 0x829D, 0x8827, 0x9003, 0x920A, 0xA434}
CAMERA_KEY = "camera or editor"  # key of the entry that stands for such a field


def read_exif(read: Read) -> list[Entry]:
    """The text fields of the first TIFF directory and of its EXIF directory; empty without a TIFF block."""
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
    seen: set[int] = set()  # repeated fields are ignored
    below = None
    for at in range(0, len(table) - 11, 12):
        tag, data_type = (int.from_bytes(table[at + i : at + i + 2], order) for i in (0, 2))
        size, value = (int.from_bytes(table[at + i : at + i + 4], order) for i in (4, 8))
        if tag == EXIF_IFD:
            below = value
        elif tag in CAMERA:
            entries.append(Entry(CAMERA_KEY, "", "EXIF"))
        elif (
            tag in FIELDS and data_type in (1, 2, 7) and tag not in seen
        ):  # bytes, ASCII, undefined: one byte each
            seen.add(tag)
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
    except (UnicodeDecodeError, UnclearPrompt) as error:
        return Entry(FIELDS[tag], "", "EXIF", f"the text cannot be decoded: {error}")
    return Entry(FIELDS[tag], text.strip("\0 \t\r\n"), "EXIF")


def _user_comment(data: bytes) -> str:
    """Decode a user comment: eight bytes that name the encoding, then the text."""
    code, text = data[:8], data[8:]
    if code == b"UNICODE\0":
        return _utf16(text)
    if code in (b"ASCII\0\0\0", b"\0" * 8):
        return decode(text)
    return decode(data)  # some writers omit the eight bytes


def _utf16(data: bytes) -> str:
    """Decode UTF-16 with or without a byte order mark. UnclearPrompt if both byte orders are plausible."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    if b"\0" not in data and data.isascii():  # ASCII that is wrongly declared as UTF-16
        return data.decode("ascii")
    data = data[: len(data) // 2 * 2]
    found = {}
    for codec in ("utf-16-be", "utf-16-le"):
        text = data.decode(codec, "replace")
        if not any(_never_written(each) for each in text):
            found[codec] = sum(map(str.isascii, text))
    if not found:
        raise UnclearPrompt("the text is not UTF-16")
    best = max(found, key=found.__getitem__)
    if len(found) == 2 and abs(found["utf-16-be"] - found["utf-16-le"]) < 2:
        raise UnclearPrompt("the text is UTF-16 without a byte order mark and can be read in both orders")
    return data.decode(best)


def _never_written(character: str) -> bool:
    """Whether a character is a control, unassigned, private or U+FFFD: a sign of the wrong byte order."""
    if character in "\0\t\n\r":
        return False
    return character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs")
