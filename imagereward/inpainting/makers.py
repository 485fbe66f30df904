"""Makes masks of a stated share of the area for images that have none: boxes and brush strokes."""

from typing import Literal

import numpy as np

from imagereward.errors import InputError

Kind = Literal["box", "strokes"]
KINDS: tuple[Kind, ...] = ("box", "strokes")
_PROPORTIONS = (0.5, 2.0)  # height / width of a box, drawn uniformly in its logarithm
_BRUSH = (0.03, 0.07)  # radius of a brush, as a share of the shorter side
_TURN = 0.35  # standard deviation of a stroke's change of direction, in radians a step
_STROKE = (15, 50)  # steps of a stroke, each of half a radius


def make_mask(kind: str, height: int, width: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """bool [height, width]: True where to paint anew.

    kind    "box": a rectangle; "strokes": wandering strokes of a round brush, several if one leaves the image
    share   of the image's area, above 0 and below 1. A box has it up to whole pixels, strokes up to the last
            touch of the brush; both have at least one pixel, and leave at least one

    Raises InputError for another kind, a share out of range, and an image of a single pixel.
    """
    if kind not in KINDS:
        raise InputError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
    if not 0 < share < 1:
        raise InputError(f"share={share}: expected a share of the area, above 0 and below 1")
    if height * width < 2:
        raise InputError(f"an image of {height} x {width} pixels has no room for a mask")
    mask = (_box if kind == "box" else _strokes)(height, width, share, rng)
    if mask.all():
        mask[int(rng.integers(height)), int(rng.integers(width))] = False
    return mask


def _box(height: int, width: int, share: float, rng: np.random.Generator) -> np.ndarray:
    area = share * height * width
    proportion = np.exp(rng.uniform(*np.log(_PROPORTIONS)))
    rows = min(height, max(1, round(float(np.sqrt(area * proportion)))))
    columns = min(width, max(1, round(area / rows)))
    rows = min(height, max(1, round(area / columns)))  # where the width was cut, the height makes up for it
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    mask = np.zeros((height, width), bool)
    mask[top : top + rows, left : left + columns] = True
    return mask


def _strokes(height: int, width: int, share: float, rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    wanted = max(1, round(share * height * width))
    while mask.sum() < wanted:
        radius = max(1.0, rng.uniform(*_BRUSH) * min(height, width))
        y, x, angle = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0, 2 * np.pi)
        for _ in range(int(rng.integers(*_STROKE))):
            _touch(mask, y, x, radius)
            if mask.sum() >= wanted:
                break
            angle += rng.normal(0, _TURN)
            y, x = y + radius / 2 * np.sin(angle), x + radius / 2 * np.cos(angle)
            if not (0 <= y < height and 0 <= x < width):
                break
    return mask


def _touch(mask: np.ndarray, y: float, x: float, radius: float) -> None:
    """Set the disk of this centre and radius, in pixels, in place."""
    top, bottom = max(0, int(y - radius)), min(mask.shape[0], int(y + radius) + 2)
    left, right = max(0, int(x - radius)), min(mask.shape[1], int(x + radius) + 2)
    rows, columns = np.ogrid[top:bottom, left:right]
    mask[top:bottom, left:right] |= (rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 <= radius**2
