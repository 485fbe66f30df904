"""Template matching of covers: a bank of blurred shapes of equal area, and `best_match`.

Blur leaves a cover's centre and area unchanged, so they determine position and size of the templates.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from imagereward.shapes.render import distance
from imagereward.shapes.scene import SHAPES

# The templates' rotations in degrees and horizontal stretches, over the ranges of `render`, and standard
# deviations of their blurs, in units of the square root of the area.
_ANGLES = (-15.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0)
_STRETCHES = (0.95, 1.0, 1.05)
_BLURS = (0.03, 0.08, 0.13, 0.18, 0.24, 0.31, 0.4, 0.5, 0.6)
# Factors of the sizes tried around a first guess, which blur makes too large; then around the best of them.
_COARSE = (0.6, 0.68, 0.77, 0.87, 0.98, 1.1)
_FINE = (0.92, 0.96, 1.0, 1.04, 1.08)
# Templates are _GRID x _GRID samples of a square of twice _REACH units, drawn _FINER times finer.
_GRID, _REACH, _FINER = 28, 1.25, 2


class Match(NamedTuple):
    """The template that best matches a cover.

    shape   one of `SHAPES`
    radius  of the circle around it, in pixels
    fit     squared correlation with the cover, apart from white noise, in [0, 1]
    full    the cover's value where the template is 1
    blur    (lowest, highest) likely standard deviation, in pixels
    """

    shape: str
    radius: float
    fit: float
    full: float
    blur: tuple[float, float]


class _Bank(NamedTuple):
    templates: np.ndarray  # [grid * grid, K], each of unit length
    shape: np.ndarray  # [K], indices into SHAPES
    blur: np.ndarray  # [K], likewise from _BLURS
    length: np.ndarray  # [K], of each template before, when full cover was 1
    area: dict[str, float]  # of each shape at radius 1


def best_match(cover: np.ndarray, x: float, y: float, unit: float, noise: float) -> Match:
    """The template that best matches `cover` [H, W] around pixel (x, y).

    unit    first guess of the square root of the thing's area, in pixels
    noise   standard deviation of the cover's white noise
    """
    bank = _bank()
    for factors in (_COARSE, _FINE):
        units = unit * np.array(factors)
        patches = _patches(cover, x, y, units)
        matches = patches @ bank.templates
        # Times the side of a grid cell, so that patches of different sizes are comparable.
        size, best = np.unravel_index(int((matches * units[:, None]).argmax()), matches.shape)
        unit = float(units[size])
    # Interpolation between pixels leaves 4/9 of white noise's variance.
    energy = float(patches[size] @ patches[size]) - 4 / 9 * noise**2 * _GRID**2
    match = float(matches[size, best])
    shape = SHAPES[bank.shape[best]]
    bounds = (0.0, *_BLURS, 1.0)
    step = bounds.index(bank.blur[best])
    return Match(
        shape,
        unit / bank.area[shape] ** 0.5,
        min(1.0, match**2 / max(energy, 1e-9)),
        match / float(bank.length[best]),
        (bounds[step - 1] * unit, bounds[step + 1] * unit),
    )


def _patches(cover: np.ndarray, x: float, y: float, units: np.ndarray) -> np.ndarray:
    """float32 [len(units), grid * grid]: the cover around (x, y), sampled at each of these sizes."""
    offsets = units[:, None] * np.linspace(-_REACH, _REACH, _GRID)
    rows = np.broadcast_to((y + offsets)[:, :, None], (len(units), _GRID, _GRID))
    columns = np.broadcast_to((x + offsets)[:, None, :], rows.shape)
    patches = ndimage.map_coordinates(cover, [rows, columns], order=1, mode="constant", prefilter=False)
    return patches.reshape(len(units), -1).astype(np.float32)


@cache
def _bank() -> _Bank:
    """Covers of all shapes at unit area, over all rotations, stretches and blurs. Computed once, in 0.2 s."""
    fine = _GRID * _FINER
    step = 2 * _REACH / (_GRID - 1)
    axis = ((np.arange(fine) + 0.5) / _FINER - 0.5) * step - _REACH
    covers, kinds, area = [], [], {}
    wide = np.linspace(-1.05, 1.05, 420)
    for kind, shape in enumerate(SHAPES):
        area[shape] = float((distance(shape, wide[None], wide[:, None]) < 0).mean() * 2.1**2)
        radius = area[shape] ** -0.5
        for stretch in _STRETCHES:
            for degrees in (0.0,) if shape in ("circle", "ring") else _ANGLES:
                angle = np.deg2rad(degrees)
                u, v = axis[None] * stretch / radius, axis[:, None] / stretch / radius
                turned = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
                covers.append((0.5 - distance(shape, *turned) * radius / step * _FINER).clip(0, 1))
                kinds.append(kind)
    sharp = np.array(covers, np.float32)
    blurs = np.stack([_blurring(axis, step, blur) for blur in _BLURS])
    soft = (blurs @ sharp[:, None] @ blurs.transpose(0, 2, 1)).reshape(-1, _GRID**2)
    length = np.linalg.norm(soft, axis=1)
    return _Bank(
        np.ascontiguousarray((soft / length[:, None]).T),
        np.repeat(kinds, len(_BLURS)),
        np.tile(_BLURS, len(covers)),
        length,
        area,
    )


def _blurring(axis: np.ndarray, step: float, blur: float) -> np.ndarray:
    """A matrix [grid, fine] that blurs along one axis and samples at the grid."""
    grid = np.linspace(-_REACH, _REACH, _GRID)
    kernel = np.exp(-((grid[:, None] - axis[None]) ** 2) / (2 * max(blur, step / 3) ** 2))
    return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)
