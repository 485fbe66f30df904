"""Damages requests (faithfulness: mistakes in the content) and pixels (quality), in levels 1 to 3."""

from dataclasses import replace

import numpy as np
from scipy import ndimage

from imagereward.shapes.render import draw
from imagereward.shapes.scene import COLOURS, MOST_THINGS, SHAPES, Group, Scene, SceneRequest, ask

MISTAKES = ("colour", "shape", "count", "relation", "missing", "extra")
DAMAGES = ("noise", "blur", "banding", "occlusion", "crop")
LEVELS = 3
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# Strengths at levels 1 to 3. noise: standard deviation; blur: standard deviation as a share of the side;
# banding: contrast; occlusion: the block's side as a share; crop: share of a thing's diameter cut off.
STRENGTH = {
    "noise": (0.07, 0.14, 0.26),
    "blur": (0.024, 0.042, 0.07),
    "banding": (0.13, 0.23, 0.38),
    "occlusion": (0.22, 0.32, 0.46),
    "crop": (0.45, 0.6, 0.75),
}
# Pairs of mistakes that can undo or hide each other.
_CANCELLING = ({"missing", "extra"}, {"missing", "relation"}, {"missing", "count"}, {"extra", "count"})


def possible_mistakes(request: SceneRequest) -> list[str]:
    """Those of `MISTAKES` that this request allows."""
    possible = ["colour", "shape"]
    if request.total < MOST_THINGS or max(group.count for group in request.groups) > 1:
        possible.append("count")
    if request.relation:
        possible.append("relation")
    if len(request.groups) > 1:
        possible.append("missing")
    if request.total < MOST_THINGS:
        possible.append("extra")
    return possible


def misread(request: SceneRequest, mistake: str, rng: np.random.Generator) -> SceneRequest:
    """The request with one mistake, of `MISTAKES`; `rng` chooses the group and the wrong value."""
    groups = list(request.groups)
    at = int(rng.integers(len(groups)))
    group = groups[at]
    colours = [c for c in COLOURS if c not in {g.colour for g in groups}]
    if mistake == "colour":
        groups[at] = replace(group, colour=str(rng.choice(colours)))
    elif mistake == "shape":
        groups[at] = replace(group, shape=str(rng.choice([s for s in SHAPES if s != group.shape])))
    elif mistake == "count":
        most = MOST_THINGS - request.total + group.count
        other = [n for n in (group.count - 1, group.count + 1) if 1 <= n <= most]
        if not other:  # one of four things: reduce another group instead
            at = max(range(len(groups)), key=lambda i: groups[i].count)
            other = [groups[at].count - 1]
        groups[at] = replace(groups[at], count=int(rng.choice(other)))
    elif mistake == "relation":
        return replace(request, relation=_OPPOSITE[request.relation or ""])
    elif mistake == "missing":
        del groups[at]
        return replace(request, groups=tuple(groups), relation=None)
    elif mistake == "extra":
        groups.append(Group(1, str(rng.choice(colours)), str(rng.choice(SHAPES))))
    return replace(request, groups=tuple(groups))


def unfaithful(
    request: SceneRequest, level: int, rng: np.random.Generator
) -> tuple[SceneRequest, tuple[str, ...]]:
    """(the request to draw instead, its mistakes): `level` mistakes; at level 3 another scene.

    The other scene shares no colour with the request; its mistakes are ("scene",). A second mistake may
    change the thing that a first one, "extra", has added: that drawing then differs by one mistake alone.
    """
    if level == LEVELS:
        asked = {group.colour for group in request.groups}
        while True:
            other = ask(rng)
            if not asked & {group.colour for group in other.groups}:
                return other, ("scene",)
    mistakes: list[str] = []
    drawn = request
    for _ in range(level):
        possible = [m for m in possible_mistakes(drawn) if m not in mistakes]
        if mistakes:  # a second mistake must not undo or hide the first
            possible = [m for m in possible if {m, mistakes[0]} not in _CANCELLING]
        mistake = str(rng.choice(possible))
        drawn = misread(drawn, mistake, rng)
        mistakes.append(mistake)
    return drawn, tuple(mistakes)


def damaged(scene: Scene, damage: str, level: int, rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """A drawing of the scene, float32 [size, size, 3] in [0, 1], with one of `DAMAGES` at level 1 to 3."""
    strength = STRENGTH[damage][level - 1]
    if damage == "crop":
        return _cropped(scene, strength, rng, size)
    image = draw(scene, rng, size)
    if damage == "noise":
        image = image + strength * rng.standard_normal(image.shape, np.float32)
    elif damage == "blur":
        sigma = strength * size * rng.uniform(0.9, 1.15)
        image = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")
    elif damage == "banding":
        image = _banded(image, strength, rng)
    elif damage == "occlusion":
        image = _occluded(image, scene, strength, rng)
    return image.clip(0, 1).astype(np.float32)


def _cropped(scene: Scene, cut: float, rng: np.random.Generator, size: int) -> np.ndarray:
    """A drawing shifted so that the border cuts off the share `cut` of the outermost thing's diameter."""
    axis, sign = int(rng.integers(2)), int(rng.choice([-1, 1]))
    outermost = max(scene.things, key=lambda thing: sign * (thing.x, thing.y)[axis] + thing.radius)
    edge = 0.5 + sign * 0.5
    wanted = edge - sign * outermost.radius * (1 - 2 * cut)
    shift = [0.0, 0.0]
    shift[axis] = wanted - (outermost.x, outermost.y)[axis]
    things = tuple(replace(t, x=t.x + shift[0], y=t.y + shift[1]) for t in scene.things)
    return draw(replace(scene, things=things), rng, size)


def _banded(image: np.ndarray, contrast: float, rng: np.random.Generator) -> np.ndarray:
    size = image.shape[0]
    rows = np.arange(size) / size * rng.uniform(5, 9) + rng.uniform(0, 2)
    bands = np.where(rows % 2 < 1, 0.5, -0.5) * contrast
    return image + bands[:, None, None].astype(np.float32)


def _occluded(image: np.ndarray, scene: Scene, share: float, rng: np.random.Generator) -> np.ndarray:
    """The image with a hatched grey block over the rim of a thing, whose side is `share` of the image's."""
    size = image.shape[0]
    thing = scene.things[rng.integers(len(scene.things))]
    angle, side = rng.uniform(0, 2 * np.pi), max(2, round(share * size))
    left = round((thing.x + thing.radius * np.cos(angle)) * size - side / 2)
    top = round((thing.y + thing.radius * np.sin(angle)) * size - side / 2)
    left, top = (min(max(0, at), size - side) for at in (left, top))
    i, j = np.mgrid[:side, :side] / size
    hatch = np.where((i + j) * 16 % 1 < 0.5, 0.3, 0.65) + rng.uniform(-0.03, 0.03)
    image[top : top + side, left : left + side] = hatch[..., None]
    return image
