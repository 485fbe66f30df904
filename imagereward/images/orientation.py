"""Turns images upright by their EXIF orientation.

Pillow turns TIFF pictures while it decodes them; all others come as they are stored.
"""

from collections.abc import Mapping

import PIL.Image

ORIENTATION = 0x0112
# Values of the tag; 1 is upright.
TURNS: Mapping[int, PIL.Image.Transpose] = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


def upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image turned upright by its EXIF orientation; the same object if it has none."""
    turn = TURNS.get(orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = {name: value for name, value in image.info.items() if name != "exif"}
    return turned


def orientation(image: PIL.Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 is upright, also for an image without EXIF. Reads that entry only."""
    block = image.info.get("exif")
    return _orientation_in(block.removeprefix(b"Exif\0\0")) if isinstance(block, bytes) else 1


def _orientation_in(block: bytes) -> int:
    """The orientation in the first directory of a TIFF block, whose entries have 12 bytes (tag, type, count,
    value)."""
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(block[:4])
    if order is None:
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(block[at : at + size], order)  # type: ignore[arg-type]

    start = number(4, 4)
    count = min(number(start, 2), (len(block) - start) // 12)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        if number(at, 2) == ORIENTATION:
            return found if (found := number(at + 8, 2)) in TURNS else 1
    return 1
