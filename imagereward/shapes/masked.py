"""Scenes with a mask over one of their things, and the same scenes with a wrong thing under the mask."""

from copy import deepcopy
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from imagereward.shapes.dataset import asked
from imagereward.shapes.render import draw, to_image
from imagereward.shapes.scene import COLOURS, MOST_THINGS, SHAPES, Scene, Thing, arrange

MASK_RADIUS = 1.15  # of the mask, in radii of the circle around the thing


class MaskedScene(NamedTuple):
    """A scene with one thing to paint anew.

    prompt  asks for the scene
    image   the scene as asked for
    mask    of the image's size, white over one of the things
    wrong   the same picture, but for the thing under the mask, which has another colour or another shape
    """

    prompt: str
    image: Image.Image
    mask: Image.Image
    wrong: Image.Image


def masked_scene(
    index: int, seed: int = 0, split: str = "train", size: int = 64, most_things: int = MOST_THINGS
) -> MaskedScene:
    """The scene of `pair` with the same arguments, a mask over one of its things, and a wrong picture."""
    request, words, rng = asked(index, seed, split, most_things)
    scene = arrange(request, rng)
    same = deepcopy(rng)  # light, grain, tilt and tints of both pictures
    image = to_image(draw(scene, rng, size))
    at = int(rng.integers(len(scene.things)))
    other = (*scene.things[:at], _mistaken(scene, at, rng), *scene.things[at + 1 :])
    wrong = to_image(draw(replace(scene, things=other), same, size))
    return MaskedScene(words, image, _mask(scene.things[at], size), wrong)


def _mistaken(scene: Scene, at: int, rng: np.random.Generator) -> Thing:
    """Thing `at` in a colour that the scene does not have, or in another shape."""
    thing = scene.things[at]
    if rng.random() < 0.5:
        colours = sorted(set(COLOURS) - {each.colour for each in scene.things})
        return replace(thing, colour=str(rng.choice(colours)))
    return replace(thing, shape=str(rng.choice([shape for shape in SHAPES if shape != thing.shape])))


def _mask(thing: Thing, size: int) -> Image.Image:
    """A white disc over the thing, whose outline is softened by up to a pixel, on black."""
    axis = (np.arange(size) + 0.5) / size
    away = np.hypot(axis[None, :] - thing.x, axis[:, None] - thing.y)
    return Image.fromarray(np.where(away <= MASK_RADIUS * thing.radius + 1 / size, 255, 0).astype(np.uint8))
