"""Measures the strength of each kind of damage from pixels, on the scales of `corrupt.STRENGTH`."""

from functools import cache

import numpy as np
from scipy import ndimage

from imagereward.shapes.render import distance
from imagereward.shapes.scene import SHAPES
from imagereward.shapes.segmentation import SIDE, Segmentation, white_noise

# Measured blur, in pixels, of sharp drawings, whose pixels average their own area.
_SHARP = 0.43
_MESS = 0.1  # root mean square difference from the paper above which pixels are neither paper nor thing


def flaws(seen: Segmentation) -> dict[str, float]:
    """{damage: strength} for each of `corrupt.DAMAGES`; 0 is none, `corrupt.STRENGTH` has levels 1 to 3.

    noise      standard deviation on the paper: of single pixels, and of blocks of 2 x 2 in excess of that
    blur       standard deviation, as a share of the side, from the slope of the things' outlines
    banding    height of steps between rows, or between columns, across the whole paper
    occlusion  side, as a share of the image's, of a square with the area that is neither paper nor thing
    crop       coloured length of the border's most coloured side, as a share of a thing's width
    """
    grey = np.where(seen.bare, seen.pixels.mean(-1), np.nan)
    flat = grey - _smooth(grey)
    rows, columns = _medians(flat, 1), _medians(flat, 0)
    rest = flat - np.nan_to_num(rows)[:, None]
    rest -= np.nan_to_num(_medians(rest, 0))
    energy = ndimage.gaussian_filter(np.nan_to_num(rest) ** 2, 1.5) - seen.noise**2 / 3
    return {
        "noise": _noise(seen),
        "blur": _blur(seen) / SIDE,
        "banding": max(_steps(rows, seen.noise / 2), _steps(columns, seen.noise / 2)),
        "occlusion": float((seen.bare & (energy > _MESS**2)).mean() ** 0.5),
        "crop": _on_border(seen),
    }


def _noise(seen: Segmentation) -> float:
    half = SIDE // 2
    coarse = seen.pixels.reshape(half, 2, half, 2, 3).mean((1, 3))
    fine = seen.noise
    blocks = np.logical_and.reduce(seen.bare.reshape(half // 2, 4, half // 2, 4), (1, 3))
    mottle = white_noise(coarse, blocks) if blocks.any() else 0.0
    return float(np.hypot(fine, max(0.0, mottle**2 - (fine / 2) ** 2) ** 0.5))


def _blur(seen: Segmentation) -> float:
    """Standard deviation in pixels: across a blurred step, the squared slope sums to 1 / (2 sqrt(pi) blur).

    Clipped to the bounds of each thing's best template, since edges that run into each other mislead it.
    """
    blurs, lengths = [0.0], [1e-9]
    for piece in seen.pieces:
        near = ndimage.binary_dilation(piece.cover > 0.5, iterations=2)[:-1, :-1]
        squares = np.diff(piece.cover, axis=0)[:, :-1] ** 2 + np.diff(piece.cover, axis=1)[:-1] ** 2
        slope = float(squares[near].sum()) - 4 * (seen.noise / piece.full) ** 2 * near.sum()
        lengths.append(_outlines()[piece.thing.shape] * piece.thing.radius * SIDE)
        blurs.append(float(np.clip(lengths[-1] / (2 * np.pi**0.5 * max(slope, 1e-3)), *piece.blur)))
    return max(0.0, float(np.average(blurs, weights=lengths)) ** 2 - _SHARP**2) ** 0.5


def _smooth(grey: np.ndarray) -> np.ndarray:
    """A quadratic surface [64, 64] fitted robustly to the grey of the paper; NaN pixels are ignored."""
    design = _quadratic()
    known = np.isfinite(grey).ravel()
    if known.sum() < 32:
        return np.zeros_like(grey)
    wanted, terms = grey.ravel()[known][::3], design[known][::3]
    surface = np.full(len(wanted), np.median(wanted))
    for _ in range(6):
        weight = 1 / (0.05**2 + (wanted - surface) ** 2)
        moments = (terms * weight[:, None]).T
        factors = np.linalg.lstsq(moments @ terms, moments @ wanted, rcond=None)[0]
        surface = terms @ factors
    return (design @ factors).reshape(grey.shape)


def _medians(values: np.ndarray, axis: int) -> np.ndarray:
    """Medians of rows (axis 1) or columns (0), ignoring NaN; NaN for lines with less than a quarter known."""
    lines = np.sort(values if axis else values.T, 1)  # NaN comes last
    known = np.isfinite(lines).sum(1)
    middle = np.take_along_axis(lines, np.maximum(known - 1, 0)[:, None] // 2, 1)[:, 0]
    return np.where(known >= SIDE // 4, middle, np.nan)


def _steps(medians: np.ndarray, noise: float) -> float:
    """Root mean square of the six largest differences between lines two apart, without their noise."""
    steps = np.abs(medians[2:] - medians[:-2])
    largest = np.sort(steps[np.isfinite(steps)])[-6:]
    return float(np.mean((largest**2 - noise**2).clip(0)) ** 0.5) if len(largest) else 0.0


def _on_border(seen: Segmentation) -> float:
    """Coloured share of the border's most coloured side, in thing widths, at most 1; includes slivers that
    are too small to be things. Without things, a radius of a tenth of the side is assumed."""
    edges = (seen.vivid[0], seen.vivid[-1], seen.vivid[:, 0], seen.vivid[:, -1])
    radii = [piece.thing.radius for piece in seen.pieces] or [0.1]
    return min(1.0, float(max(edge.sum() for edge in edges)) / (2 * SIDE * sum(radii) / len(radii)))


@cache
def _outlines() -> dict[str, float]:
    """{shape: length of its outline at radius 1}, from the area of a thin band around it."""
    axis = np.linspace(-1.1, 1.1, 880)
    bands = {shape: np.abs(distance(shape, axis[None], axis[:, None])) < 0.02 for shape in SHAPES}
    return {shape: float(band.mean() * 2.2**2 / 0.04) for shape, band in bands.items()}


@cache
def _quadratic() -> np.ndarray:
    axis = np.linspace(-1, 1, SIDE)
    x, y = np.meshgrid(axis, axis)
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1).reshape(-1, 6)
