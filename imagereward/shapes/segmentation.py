"""From pixels to things, without a learned model: what is drawn, where, in which colour and how sharply.

Things are chromatic and papers are not, so a pixel's two opponent values (its colour without its grey) are
its thing's, times how much of the pixel the thing covers. That stays true under blur, shade and grey damage,
so shapes are compared as covers.
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

SIDE = 64  # every image is measured at this many pixels a side
SMALLEST_SIDE = 32
# An orthonormal basis of the plane of RGB in which greys vanish.
_OPPONENT = np.array([[2, -1, -1], [0, 3**0.5, -(3**0.5)]], np.float32).T / 6**0.5
_FAINTEST = 0.12  # opponent length below which nothing counts as coloured; paints have 0.37 to 0.67
_VIVID = 0.2
_SMALLEST = 8  # pixels; the smallest things that are drawn cover over 20
_FULL = 0.45  # a thing's pixels are those with more than this share of its colour
_SPLIT_BELOW = 0.9  # a fit worse than this may be two things that touch


@dataclass(frozen=True)
class MeasuredThing:
    """One thing as read from pixels.

    shape, colour  the nearest of `SHAPES` and `COLOURS`
    x, y, radius   centre and radius of the circle around it, as shares of the image's side
    fit            how well its cover agrees with the shape: 1 exactly; clean ones have over 0.93
    """

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    fit: float


class Piece(NamedTuple):
    """A thing and its pixels.

    cover  [64, 64], how much of each pixel it covers: 1 where full, 0 off it, with noise
    full   distance from grey in the opponent plane where cover is 1
    blur   lowest and highest standard deviation, in pixels, that its best template leaves likely
    """

    thing: MeasuredThing
    cover: np.ndarray
    full: float
    blur: tuple[float, float]


class Segmentation(NamedTuple):
    """An image in parts.

    pixels  float32 [64, 64, 3] in [0, 1]
    noise   standard deviation of white noise in them
    pieces  the things and their pixels
    vivid   bool [64, 64], the pixels that are clearly coloured, in a thing or not
    bare    bool [64, 64], the pixels well away from all things
    paper   RGB in [0, 1], their median
    """

    pixels: np.ndarray
    noise: float
    pieces: tuple[Piece, ...]
    vivid: np.ndarray
    bare: np.ndarray
    paper: tuple[float, ...]


def to_pixels(image: ImageLike) -> np.ndarray:
    """Any image `imagereward.images.read_image` takes as float32 [64, 64, 3] in [0, 1].

    Raises its errors, and InputError for images that are not square or have fewer than 32 pixels a side.
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
    """What is in float pixels [64, 64, 3] in [0, 1]."""
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
    """Standard deviation of white noise in pixels [H, W, 3], from checkerboard sums of 2 x 2 (only `blocks`).

    The smallest six tenths of them count, so that edges and textures on a part of the image do not.
    """
    checker = pixels[::2, ::2] - pixels[1::2, ::2] - pixels[::2, 1::2] + pixels[1::2, 1::2]
    sums = np.abs(checker if blocks is None else checker[blocks]).ravel()
    kept = np.sort(sums)[: max(1, int(0.6 * len(sums)))]
    # 0.3966 is the mean of the smallest six tenths of a half-normal distribution.
    return float(kept.mean() / (2 * 0.3966))


def _parts(smooth: np.ndarray, faintest: float) -> np.ndarray:
    """Labels [64, 64]: connected pixels of full colour, taken apart where colours meet; 0 is paper."""
    strength = np.hypot(smooth[..., 0], smooth[..., 1])
    labels, _ = ndimage.label(strength > faintest)
    full = np.zeros(labels.shape, bool)
    for label, window in enumerate(ndimage.find_objects(labels), 1):
        mine = labels[window] == label
        full[window] |= mine & (strength[window] > _FULL * np.quantile(strength[window][mine], 0.9))
    return _large(ndimage.label(full)[0])


def _pieces(opponent, smooth, part: np.ndarray, region: np.ndarray, noise: float) -> list[Piece]:
    """The thing in `part`, or the several it splits into if those fit better."""
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
    """Ways to take a part apart, as labels [64, 64] of seeds: by hue, at weak colour, at narrow places."""
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
    """The labels that have enough pixels to be a thing."""
    sizes = np.bincount(labels.ravel())
    return np.where((sizes >= _SMALLEST)[labels], labels, 0)


def _nearest(labels: np.ndarray) -> np.ndarray:
    """[2, 64, 64]: row and column of the labelled pixel nearest to each."""
    return ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)


def _fitted(opponent: np.ndarray, part: np.ndarray, region: np.ndarray, noise: float) -> Piece:
    """The thing whose pixels are mostly `part` and all in `region`, fitted with the bank."""
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
    """Unit vector of the pixels' colour; where colours cancel, that of the most frequent one."""
    mean = opponent_N_2.mean(0)
    length = np.hypot(*mean)
    if length < 0.3 * np.hypot(*opponent_N_2.T).mean():
        return _hues()[np.bincount((opponent_N_2 @ _hues().T).argmax(-1)).argmax()]
    return mean / length


@cache
def _hues() -> np.ndarray:
    """[8, 2], the direction of each colour in the opponent plane."""
    paints = [colorsys.hsv_to_rgb(PAINT[c][0] / 360, *PAINT[c][1:]) for c in COLOURS]
    plane = np.array(paints, np.float32) @ _OPPONENT
    return plane / np.linalg.norm(plane, axis=1, keepdims=True)
