"""A bank of softly drawn shapes of equal area, and which of them a cover looks most like.

A cover's centre and area survive blur, so they say where and how large the templates are compared.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from imagereward.shapes.render import distance
from imagereward.shapes.scene import SHAPES

# Rotation in degrees and horizontal stretch, over the ranges that `render` draws from; blur's standard
# deviation, in units of the square root of the area.
_ANGLES = (-15.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0)
_STRETCHES = (0.95, 1.0, 1.05)
_BLURS = (0.03, 0.08, 0.13, 0.18, 0.24, 0.31, 0.4, 0.5, 0.6)
# Sizes tried around a first guess, which blur makes too large, and then around the best of them.
_COARSE = (0.6, 0.68, 0.77, 0.87, 0.98, 1.1)
_FINE = (0.92, 0.96, 1.0, 1.04, 1.08)
# Templates are _GRID x _GRID samples of a square of twice _REACH units, drawn _FINER times finer.
_GRID, _REACH, _FINER = 28, 1.25, 2


class Match(NamedTuple):
    """The template that explains most of a cover.

    shape   one of `SHAPES`
    radius  of the circle around it, in pixels
    fit     squared correlation with the cover, apart from white noise, in [0, 1]
    full    the cover's value where the template's is 1
    blur    lowest and highest standard deviation, in pixels, that are likely
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
    """What `cover` [H, W] shows around pixel (x, y).

    `unit` guesses the square root of its area in pixels; `noise` is its white noise's standard deviation.
    """
    bank = _bank()
    for factors in (_COARSE, _FINE):
        units = unit * np.array(factors)
        patches = _patches(cover, x, y, units)
        matches = patches @ bank.templates
        # Times a grid cell's side, so that patches of different sizes compare.
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
    """float32 [units, grid * grid]: the cover around (x, y), each time at another size."""
    offsets = units[:, None] * np.linspace(-_REACH, _REACH, _GRID)
    rows = np.broadcast_to((y + offsets)[:, :, None], (len(units), _GRID, _GRID))
    columns = np.broadcast_to((x + offsets)[:, None, :], rows.shape)
    patches = ndimage.map_coordinates(cover, [rows, columns], order=1, mode="constant", prefilter=False)
    return patches.reshape(len(units), -1).astype(np.float32)


@cache
def _bank() -> _Bank:
    """Covers of every shape at unit area, over the rotations, stretches and blurs there are; 0.2 s once."""
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
    """[grid, fine] matrix that blurs along one axis and samples at the grid."""
    grid = np.linspace(-_REACH, _REACH, _GRID)
    kernel = np.exp(-((grid[:, None] - axis[None]) ** 2) / (2 * max(blur, step / 3) ** 2))
    return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)
