"""Inpainting on Shapes: rows of a prompt, an image and a mask whose truth is known, and their measure."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from imagereward.config import whole_number
from imagereward.errors import InputError
from imagereward.images.reading import ImageLike, read_image
from imagereward.shapes.language import read, say
from imagereward.shapes.measure import judge
from imagereward.shapes.render import distance, draw, to_image
from imagereward.shapes.scene import (
    COLOURS,
    MARGIN,
    SHAPES,
    Group,
    Scene,
    SceneRequest,
    Thing,
    arrange,
    ask,
    check_split,
)
from imagereward.shapes.segmentation import MeasuredThing, see, to_pixels

Region = Literal["box", "brush", "object"]
REGIONS: tuple[Region, ...] = ("box", "brush", "object")
# How far a mask reaches beyond the circle around its thing, as a share of the image's side.
_PADDING = (0.02, 0.09)
_WHITE = 128  # a mask's grey value from which a pixel is painted anew


@dataclass(frozen=True)
class InpaintingRow:
    """A drawn scene, a mask over one of its things, and a prompt for what the mask shall show.

    prompt    names one thing, such as "a red circle"
    image     the scene, RGB, square
    mask      of the image's size, mode L: 255 where to paint anew, else 0
    scene     what was drawn
    thing     the index of the masked thing in `scene.things`
    """

    prompt: str
    image: Image.Image
    mask: Image.Image
    scene: Scene
    thing: int


def inpainting_row(
    index: int,
    seed: int = 0,
    split: str = "train",
    size: int = 64,
    *,
    change: bool = False,
    regions: tuple[Region, ...] = ("box", "brush"),
) -> InpaintingRow:
    """A row that is a function of its arguments.

    index, seed   number the row
    split         "train", "valid" or "test": scenes of different splits never coincide
    size          pixels of a side
    change        False: the prompt names the masked thing, as for training. True: it names another thing, in
                  colour and in shape, as for editing
    regions       kinds of masks to choose from. "box": a rectangle around the thing; "brush": thick strokes
                  over it; "object": the thing's own shape, a little larger

    The mask covers the masked thing, and touches no other one.
    """
    check_split(split)
    if not regions or any(region not in REGIONS for region in regions):
        raise InputError(f"regions={regions!r}: expected some of {', '.join(REGIONS)}")
    numbers = [int.from_bytes(split.encode()[:4], "big"), whole_number("index", index, 0)]
    rng = np.random.default_rng([whole_number("seed", seed, 0), *numbers])
    while True:
        scene = arrange(ask(rng, split, most_things=3), rng)
        at = int(rng.integers(len(scene.things)))
        region = str(rng.choice(regions))
        covered = _region(scene.things[at], region, rng, size)
        others = [thing for place, thing in enumerate(scene.things) if place != at]
        if not any((covered & _disk(thing, size)).any() for thing in others):
            break
    thing = scene.things[at]
    group = Group(1, thing.colour, thing.shape)
    if change:
        colour = str(rng.choice([each for each in COLOURS if each != thing.colour]))
        group = Group(1, colour, str(rng.choice([each for each in SHAPES if each != thing.shape])))
    prompt = say(SceneRequest((group,)), rng)
    mask = Image.fromarray(np.where(covered, 255, 0).astype(np.uint8))
    return InpaintingRow(prompt, to_image(draw(scene, rng, size)), mask, scene, at)


def object_mask(scene: Scene, thing: int, size: int, margin: float = 0.03) -> np.ndarray:
    """bool [size, size]: the shape of one thing of a scene, and `margin` (a share of the side) around it."""
    shown = scene.things[thing]
    u, v = _coordinates(shown, size)
    return distance(shown.shape, u, v) * shown.radius <= margin


@dataclass(frozen=True)
class InpaintingMeasurement:
    """What an image shows inside its mask, and how far it moved outside.

    found         the things that lie mostly in the mask, the largest first
    attributes    as `Measurement.attributes`, of the things in the mask
    faithfulness  count times the mean of the other attributes, in [0, 1]: whether the mask shows what was
                  asked for
    outside       mean absolute difference from the original outside the mask, in [0, 1]; 0: unchanged.
                  NaN if the mask covers everything
    """

    found: tuple[MeasuredThing, ...]
    attributes: dict[str, float]
    faithfulness: float
    outside: float

    @property
    def faithful(self) -> bool:
        """Whether the mask shows exactly what was asked for."""
        return all(value == 1 for value in self.attributes.values())


def measure_inpainting(
    image: ImageLike, prompt: str | SceneRequest, original: ImageLike, mask: ImageLike
) -> InpaintingMeasurement:
    """Measure a painted image against its prompt and its original: deterministic, without a learned model.

    image, original   square, at least 32 x 32 pixels; compared at 64 x 64
    prompt            asks for what the mask shall show
    mask              white (from 128 of 255) where the image was painted anew

    Raises InputError for a prompt outside the grammar, images that are not square, and an empty mask.
    """
    request = read(prompt) if isinstance(prompt, str) else prompt
    pixels, before = to_pixels(image), to_pixels(original)
    shape = pixels.shape[:2]
    picture = read_image(mask).convert("L")
    if picture.width != picture.height:
        raise InputError(f"a mask of {picture.width} x {picture.height} pixels: expected a square one")
    inside = np.asarray(picture.resize(shape, Image.Resampling.NEAREST)) >= _WHITE
    if not inside.any():
        raise InputError("the mask has no white pixel: expected one where the image was painted anew")
    seen = see(pixels)
    found = [piece.thing for piece in seen.pieces if _mostly(piece.cover > 0.5, inside)]
    found = sorted(found, key=lambda thing: -thing.radius)
    attributes = judge(found, seen.paper, request) if found else dict.fromkeys(("count", "thing"), 0.0)
    others = [value for name, value in attributes.items() if name != "count"]
    moved = np.abs(pixels - before)[~inside]
    return InpaintingMeasurement(
        tuple(found),
        attributes,
        attributes["count"] * float(np.mean(others)),
        float(moved.mean()) if moved.size else float("nan"),
    )


def _mostly(thing_H_W: np.ndarray, inside_H_W: np.ndarray) -> bool:
    """Whether more than half of the thing's pixels are inside."""
    return bool((thing_H_W & inside_H_W).sum() * 2 > thing_H_W.sum())


def _region(thing: Thing, region: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """bool [size, size]: a mask of this kind over the thing."""
    if region == "object":
        u, v = _coordinates(thing, size)
        return distance(thing.shape, u, v) * thing.radius <= rng.uniform(*_PADDING)
    if region == "box":
        sides = [thing.radius + rng.uniform(*_PADDING) for _ in range(4)]
        axis = (np.arange(size) + 0.5) / size
        columns = (axis >= thing.x - sides[0]) & (axis <= thing.x + sides[1])
        rows = (axis >= thing.y - sides[2]) & (axis <= thing.y + sides[3])
        return rows[:, None] & columns[None, :]
    covered = _disk(thing, size, rng.uniform(*_PADDING))
    x, y = thing.x, thing.y
    for _ in range(int(rng.integers(1, 4))):
        angle, length = rng.uniform(0, 2 * np.pi), thing.radius + rng.uniform(0.02, 0.12)
        for step in np.linspace(0, length, 12):
            spot = Thing("circle", thing.colour, x + step * np.cos(angle), y + step * np.sin(angle), 0.05)
            covered |= _disk(spot, size, 0.0)
    return covered


def _disk(thing: Thing, size: int, padding: float = MARGIN / 3) -> np.ndarray:
    u, v = _coordinates(thing, size)
    return np.hypot(u, v) * thing.radius <= thing.radius + padding


def _coordinates(thing: Thing, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(u [1, size], v [size, 1]): pixels' centres in the thing's radii, from its centre."""
    axis = (np.arange(size) + 0.5) / size
    return (axis[None, :] - thing.x) / thing.radius, (axis[:, None] - thing.y) / thing.radius
