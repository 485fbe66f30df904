"""Draws scenes as pixels of any size, by signed distances, with random light, grain, tilt and tints."""

import colorsys

import numpy as np
from PIL import Image
from scipy import ndimage

from imagereward.shapes.scene import Scene, Thing

# Hue in degrees, saturation, value.
PAINT = {
    "red": (0, 0.86, 0.86),
    "orange": (29, 0.92, 0.96),
    "yellow": (56, 0.90, 0.94),
    "green": (128, 0.80, 0.66),
    "cyan": (184, 0.85, 0.82),
    "blue": (228, 0.85, 0.86),
    "purple": (276, 0.76, 0.70),
    "pink": (328, 0.55, 0.95),
}
PAPER = {"white": 0.93, "grey": 0.52, "black": 0.09}
_RING_HOLE = 0.55
_STAR_WAIST = 0.45
_CROSS_ARM = 0.36


def draw(scene: Scene, rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """The scene as RGB float32 [size, size, 3] in [0, 1]; `rng` decides light, grain, tilt and tints."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = axis[None, :], axis[:, None]
    paper = PAPER[scene.background] + rng.uniform(-0.04, 0.04)
    image = np.full((size, size, 3), paper, np.float32) * _tint(rng)
    image += 0.5 * rng.uniform(0.2, 1) * 0.06 * _clouds(rng, size)[..., None]
    for thing in scene.things:
        _paint(image, thing, x, y, rng)
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.16)
    light = 1 + depth * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)) * 2
    image *= light[..., None]
    image += rng.uniform(0, 0.012) * rng.standard_normal(image.shape, np.float32)
    return image.clip(0, 1)


def to_image(pixels_H_W_3: np.ndarray) -> Image.Image:
    """Float pixels [H, W, 3] in [0, 1] as an 8-bit PIL image."""
    return Image.fromarray(np.rint(pixels_H_W_3 * 255).astype(np.uint8))


def distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance of points (u, v) to a shape in the circle of radius 1 around 0; negative inside."""
    if shape == "circle":
        return np.hypot(u, v) - 1
    if shape == "ring":
        middle, half = (1 + _RING_HOLE) / 2, (1 - _RING_HOLE) / 2
        return np.abs(np.hypot(u, v) - middle) - half
    if shape == "square":
        return _polygon(_corners([1], 4, np.pi / 4), u, v)
    if shape == "triangle":
        return _polygon(_corners([1], 3, -np.pi / 2), u, v)
    if shape == "star":
        return _polygon(_corners([1, _STAR_WAIST], 5, -np.pi / 2), u, v)
    arm = _CROSS_ARM
    long = np.sqrt(1 - arm**2)
    return np.minimum(_box(u, v, long, arm), _box(u, v, arm, long))


def _paint(image: np.ndarray, thing: Thing, x, y, rng: np.random.Generator) -> None:
    """Draw a thing onto the image, in place."""
    size = image.shape[0]
    reach = thing.radius * 1.1 + 1.5 / size
    left, top = (max(0, int((c - reach) * size)) for c in (thing.x, thing.y))
    right, bottom = (min(size, int((c + reach) * size) + 1) for c in (thing.x, thing.y))
    angle, stretch = np.deg2rad(rng.uniform(-14, 14)), rng.uniform(0.95, 1.05)
    hue, saturation, value = PAINT[thing.colour]
    colour = colorsys.hsv_to_rgb(
        ((hue + rng.uniform(-5, 5)) / 360) % 1,
        min(1.0, saturation * rng.uniform(0.92, 1.06)),
        min(1.0, value * rng.uniform(0.9, 1.06)),
    )
    if right <= left or bottom <= top:  # a crop has moved the thing out of the image
        return
    u, v = (x[:, left:right] - thing.x) * stretch, (y[top:bottom] - thing.y) / stretch
    turned_u = (u * np.cos(angle) + v * np.sin(angle)) / thing.radius
    turned_v = (-u * np.sin(angle) + v * np.cos(angle)) / thing.radius
    cover = (0.5 - distance(thing.shape, turned_u, turned_v) * thing.radius * size).clip(0, 1)[..., None]
    wave = rng.uniform(6, 14) * np.pi
    weave = np.sin(wave * turned_u / 4 + rng.uniform(0, 6)) * np.sin(wave * turned_v / 4 + rng.uniform(0, 6))
    painted = np.array(colour, np.float32) * (1 + rng.uniform(0, 0.09) * weave[..., None])
    patch = image[top:bottom, left:right]
    patch += cover * (painted - patch)


def _tint(rng: np.random.Generator) -> np.ndarray:
    return 1 + rng.uniform(-0.015, 0.015, 3).astype(np.float32)


def _clouds(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smooth noise [size, size] in about [-1, 1], with features of a quarter of the side."""
    coarse = rng.uniform(-1, 1, (5, 5)).astype(np.float32)
    places = np.linspace(0, 4, size)
    return ndimage.map_coordinates(coarse, np.meshgrid(places, places, indexing="ij"), order=1)


def _corners(radii: list[float], points: int, start: float) -> np.ndarray:
    angles = start + 2 * np.pi * np.arange(points * len(radii)) / (points * len(radii))
    return np.tile(radii, points)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def _polygon(corners_K_2: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to a polygon: to its nearest edge, with the sign of the crossing number."""
    nearest = np.full(np.broadcast(u, v).shape, np.inf)
    inside = np.zeros(nearest.shape, bool)
    for (ax, ay), (bx, by) in zip(corners_K_2, np.roll(corners_K_2, -1, 0)):
        ex, ey = bx - ax, by - ay
        along = (((u - ax) * ex + (v - ay) * ey) / (ex * ex + ey * ey)).clip(0, 1)
        nearest = np.minimum(nearest, np.hypot(u - ax - along * ex, v - ay - along * ey))
        if ay != by:
            inside ^= ((ay > v) != (by > v)) & (u < (v - ay) * ex / ey + ax)
    return np.where(inside, -nearest, nearest)


def _box(u, v, half_width: float, half_height: float) -> np.ndarray:
    du, dv = np.abs(u) - half_width, np.abs(v) - half_height
    return np.hypot(np.maximum(du, 0), np.maximum(dv, 0)) + np.minimum(np.maximum(du, dv), 0)
