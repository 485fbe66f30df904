"""Finds the things in an image of Shapes, with shape, colour, place and sharpness, without a learned model.

Things are chromatic and papers are grey. So a pixel's two opponent values (its colour without its grey) equal
those of its thing, times the share of the pixel that the thing covers ("cover"), even under blur, shade and
grey damage. Shapes are therefore recognised from covers.
"""

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from imagereward.errors import InputError
from imagereward.images.reading import ImageLike, read_image
from imagereward.shapes.render import PAINT
from imagereward.shapes.scene import COLOURS
from imagereward.shapes.templates import best_match

SIDE = 64  # pixels of a side at which images are measured
SMALLEST_SIDE = 32
# An orthonormal basis of the plane of RGB in which greys vanish.
_OPPONENT = np.array([[2, -1, -1], [0, 3**0.5, -(3**0.5)]], np.float32).T / 6**0.5
_FAINTEST = 0.12  # opponent length below which a pixel counts as grey; paints have 0.37 to 0.67
_VIVID = 0.2
_SMALLEST = 8  # least pixels of a thing; drawn things cover more than 20
_FULL = 0.45  # share of a thing's colour above which a pixel belongs to it
_SPLIT_BELOW = 0.9  # fit below which a thing may be two that touch


@dataclass(frozen=True)
class MeasuredThing:
    """A thing recognised in an image.

    shape, colour  the nearest of `SHAPES` and `COLOURS`
    x, y, radius   centre and radius of the circle around it, as shares of the image's side
    fit            squared correlation of its cover with the shape, in [0, 1]; over 0.93 for clean things
    """

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    fit: float


class Piece(NamedTuple):
    """A recognised thing and its pixels.

    cover  [64, 64], share of each pixel that the thing covers, in about [0, 1], with noise
    full   distance from grey, in the opponent plane, of a fully covered pixel
    blur   (lowest, highest) likely standard deviation in pixels, by the best template
    """

    thing: MeasuredThing
    cover: np.ndarray
    full: float
    blur: tuple[float, float]


class Segmentation(NamedTuple):
    """An image segmented into things and paper.

    pixels  float32 [64, 64, 3] in [0, 1]
    noise   standard deviation of white noise in the pixels
    pieces  the things and their pixels
    vivid   bool [64, 64], clearly coloured pixels, in a thing or not
    bare    bool [64, 64], pixels well away from all things
    paper   median RGB of the bare pixels, in [0, 1]
    """

    pixels: np.ndarray
    noise: float
    pieces: tuple[Piece, ...]
    vivid: np.ndarray
    bare: np.ndarray
    paper: tuple[float, ...]


def to_pixels(image: ImageLike) -> np.ndarray:
    """An image, in any form that `read_image` takes, as float32 [64, 64, 3] in [0, 1].

    Raises the errors of `read_image`, and InputError for an image that is not square or has a side below 32
    pixels.
    """
    picture = read_image(image).convert("RGB")
    if picture.width != picture.height or picture.width < SMALLEST_SIDE:
        raise InputError(
            f"an image of {picture.width} x {picture.height} pixels: expected a square one of at least "
            f"{SMALLEST_SIDE} x {SMALLEST_SIDE}"
        )
    if picture.width != SIDE:
        shrinks = picture.width > SIDE
        picture = picture.resize((SIDE, SIDE), Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC)
    return np.asarray(picture, np.float32) / 255


def see(pixels: np.ndarray) -> Segmentation:
    """Segment float pixels [64, 64, 3] in [0, 1] into things and paper."""
    noise = white_noise(pixels)
    opponent = pixels @ _OPPONENT
    opponent = opponent - np.median(opponent.reshape(-1, 2), 0)
    soften = float(np.clip(8 * noise, 0.4, 2))
    smooth = ndimage.gaussian_filter(opponent, (soften, soften, 0))
    faintest = max(_FAINTEST, 5 * noise / (2 * np.pi**0.5 * soften))
    parts = _parts(smooth, faintest)
    pieces: list[Piece] = []
    if parts.max():
        region = parts[tuple(_nearest(parts))]
        for label in np.unique(parts[parts > 0]):
            pieces += _pieces(opponent, smooth, parts == label, region == label, noise)
    bare = np.ones((SIDE, SIDE), bool)
    for piece in pieces:
        bare &= ~ndimage.binary_dilation(piece.cover > 0.2, iterations=2)
    paper = np.median(pixels[bare] if bare.any() else pixels.reshape(-1, 3), 0)
    vivid = np.hypot(smooth[..., 0], smooth[..., 1]) > max(_VIVID, faintest)
    return Segmentation(pixels, noise, tuple(pieces), vivid, bare, tuple(paper.tolist()))


def white_noise(pixels: np.ndarray, blocks: np.ndarray | None = None) -> float:
    """Standard deviation of white noise in pixels [H, W, 3], from checkerboard sums of blocks of 2 x 2.

    blocks   bool [H / 2, W / 2], the blocks to use; default: all

    Only the smallest six tenths of the sums are used, which excludes edges and textures.
    """
    checker = pixels[::2, ::2] - pixels[1::2, ::2] - pixels[::2, 1::2] + pixels[1::2, 1::2]
    sums = np.abs(checker if blocks is None else checker[blocks]).ravel()
    kept = np.sort(sums)[: max(1, int(0.6 * len(sums)))]
    # 0.3966 is the mean of the smallest six tenths of a half-normal distribution.
    return float(kept.mean() / (2 * 0.3966))


def _parts(smooth: np.ndarray, faintest: float) -> np.ndarray:
    """Labels [64, 64] of connected regions of full colour; 0 is paper."""
    strength = np.hypot(smooth[..., 0], smooth[..., 1])
    labels, _ = ndimage.label(strength > faintest)
    full = np.zeros(labels.shape, bool)
    for label, window in enumerate(ndimage.find_objects(labels), 1):
        mine = labels[window] == label
        full[window] |= mine & (strength[window] > _FULL * np.quantile(strength[window][mine], 0.9))
    return _large(ndimage.label(full)[0])


def _pieces(opponent, smooth, part: np.ndarray, region: np.ndarray, noise: float) -> list[Piece]:
    """The thing in `part`, or several things if splitting the part gives better fits."""
    whole = _fitted(opponent, part, region, noise)
    if whole.thing.fit >= _SPLIT_BELOW:
        return [whole]
    for seeds in _splits(smooth, part):
        pieces = []
        owner = seeds[tuple(_nearest(seeds))]
        for seed in np.unique(seeds[seeds > 0]):
            pieces.append(_fitted(opponent, part & (owner == seed), region & (owner == seed), noise))
        if len(pieces) > 1 and np.mean([piece.thing.fit for piece in pieces]) > whole.thing.fit + 0.03:
            return pieces
    return [whole]


def _splits(smooth: np.ndarray, part: np.ndarray) -> Iterator[np.ndarray]:
    """Ways to split a part, as labels [64, 64] of seeds: by hue, at weak colour, at narrow places."""
    hue = (smooth @ _hues().T).argmax(-1)
    shares = np.bincount(hue[part], minlength=len(COLOURS)) / part.sum()
    several = np.flatnonzero(shares >= 0.2)
    if len(several) > 1:
        yield _large(np.where(part, 1 + (smooth @ _hues()[several].T).argmax(-1), 0))
    strength = np.hypot(smooth[..., 0], smooth[..., 1])
    peak = np.quantile(strength[part], 0.9)
    for share in (0.6, 0.7, 0.8):
        yield _large(ndimage.label(part & (strength > share * peak))[0])
    depth = ndimage.distance_transform_edt(part)
    for least in (1, 2, 3, 4):
        yield _large(ndimage.label(depth > least)[0])


def _large(labels: np.ndarray) -> np.ndarray:
    """The labels with at least `_SMALLEST` pixels; others become 0."""
    sizes = np.bincount(labels.ravel())
    return np.where((sizes >= _SMALLEST)[labels], labels, 0)


def _nearest(labels: np.ndarray) -> np.ndarray:
    """[2, 64, 64]: row and column of the labelled pixel that is nearest to each pixel."""
    return ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)


def _fitted(opponent: np.ndarray, part: np.ndarray, region: np.ndarray, noise: float) -> Piece:
    """The thing in `region` whose full pixels are `part`, matched with the template bank."""
    direction = _direction(opponent[part])
    cover = np.where(region, opponent @ direction, 0)
    near = ndimage.binary_dilation(part, iterations=3) & region
    full = max(_FAINTEST / 2, float(np.quantile(cover[part], 0.7)))
    row, column = np.nonzero(near)
    weight = cover[near].clip(0)
    y, x = np.average(row, weights=weight), np.average(column, weights=weight)
    unit = max(2.0, float(np.sqrt(cover[near].clip(0).sum() / full)))
    match = best_match(cover, x, y, unit, noise)
    thing = MeasuredThing(
        match.shape,
        COLOURS[int((_hues() @ direction).argmax())],
        float(x + 0.5) / SIDE,
        float(y + 0.5) / SIDE,
        match.radius / SIDE,
        match.fit,
    )
    full = max(_FAINTEST / 2, match.full)
    return Piece(thing, cover / full, full, match.blur)


def _direction(opponent_N_2: np.ndarray) -> np.ndarray:
    """Unit vector [2] of the pixels' mean colour; of the most frequent colour if the mean cancels."""
    mean = opponent_N_2.mean(0)
    length = np.hypot(*mean)
    if length < 0.3 * np.hypot(*opponent_N_2.T).mean():
        return _hues()[np.bincount((opponent_N_2 @ _hues().T).argmax(-1)).argmax()]
    return mean / length


@cache
def _hues() -> np.ndarray:
    """[8, 2], unit vectors of `COLOURS` in the opponent plane."""
    paints = [colorsys.hsv_to_rgb(PAINT[c][0] / 360, *PAINT[c][1:]) for c in COLOURS]
    plane = np.array(paints, np.float32) @ _OPPONENT
    return plane / np.linalg.norm(plane, axis=1, keepdims=True)
