"""`SceneRequest`, the content of a prompt, and `Scene`, the things to draw; draws both at random.

Lengths and positions are shares of the image's side; x grows to the right and y downwards.
"""

import zlib
from dataclasses import dataclass, replace

import numpy as np

from imagereward.errors import InputError

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
BACKGROUNDS = ("white", "grey", "black")
# Relations of the first group to the second.
RELATIONS = ("left of", "right of", "above", "below")
SIZES = {"small": (0.095, 0.115), "large": (0.19, 0.23)}
ANY_SIZE = (0.14, 0.21)
# Ranges (low, high) of x and y of a single thing's centre.
_LOW, _MIDDLE, _HIGH = (0.0, 0.34), (0.38, 0.62), (0.66, 1.0)
POSITIONS = {
    "top left": (_LOW, _LOW),
    "top": (_MIDDLE, _LOW),
    "top right": (_HIGH, _LOW),
    "left": (_LOW, _MIDDLE),
    "center": (_MIDDLE, _MIDDLE),
    "right": (_HIGH, _MIDDLE),
    "bottom left": (_LOW, _HIGH),
    "bottom": (_MIDDLE, _HIGH),
    "bottom right": (_HIGH, _HIGH),
}
MOST_THINGS = 4
SPLITS = ("train", "valid", "test")
# Least distance of two related things' centres along the relation's axis.
RELATION_GAP = 0.22
MARGIN = 0.03  # least distance between things


@dataclass(frozen=True)
class Group:
    """Things that a prompt names together, such as "three red circles".

    count           1 to 4
    colour, shape   of `COLOURS` and `SHAPES`
    size            of `SIZES`; None: any
    """

    count: int
    colour: str
    shape: str
    size: str | None = None


@dataclass(frozen=True)
class SceneRequest:
    """The content of a prompt; None for an attribute that the prompt does not mention.

    groups       one to three
    relation     of `RELATIONS`: from the mean centre of the first group to that of the second
    position     of `POSITIONS`: of the first thing
    background   of `BACKGROUNDS`
    """

    groups: tuple[Group, ...]
    relation: str | None = None
    position: str | None = None
    background: str | None = None

    @property
    def total(self) -> int:
        """Number of things."""
        return sum(group.count for group in self.groups)

    @property
    def split(self) -> str:
        """ "train", "valid" or "test", by a hash of the request, so that splits never overlap.

        Requests that differ only in size, position, background or order share a split.
        """
        groups = [(group.count, group.colour, group.shape) for group in self.groups]
        relation = self.relation
        if relation is None or relation in ("right of", "below"):
            order = sorted(range(len(groups)), key=lambda i: groups[i]) if relation is None else [1, 0]
            groups = [groups[i] for i in order]
            relation = relation and {"right of": "left of", "below": "above"}[relation]
        bucket = zlib.crc32(repr((groups, relation)).encode()) % 20
        return {0: "test", 1: "test", 2: "valid"}.get(bucket, "train")


@dataclass(frozen=True)
class Thing:
    """A thing to draw, with the centre (x, y) and the radius of the circle around it."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """The things to draw, and the background; `render.draw` adds light, grain, tilt and tints."""

    things: tuple[Thing, ...]
    background: str


def check_split(split: str | None) -> None:
    """Raises InputError for a name that is no split; None is any."""
    if split not in (None, *SPLITS):
        raise InputError(f"split={split!r}: expected one of {', '.join(SPLITS)}")


def ask(rng: np.random.Generator, split: str | None = None, most_things: int = MOST_THINGS) -> SceneRequest:
    """A random request for at most `most_things` things, of the given split (`SceneRequest.split`) or any.

    Raises InputError for most_things below 1, and for another split than "train", "valid" and "test".
    """
    check_split(split)
    if most_things < 1:
        raise InputError(f"most_things={most_things}: expected at least 1")
    while True:
        request = _ask(rng)
        if request.total <= most_things and split in (None, request.split):
            return request


def _ask(rng: np.random.Generator) -> SceneRequest:
    layout = rng.choice(["one", "many", "two", "related", "three"], p=[0.2, 0.25, 0.15, 0.33, 0.07])
    position = relation = None
    if layout == "one":
        groups = [_group(rng, 1, sized=True)]
        if rng.random() < 0.4:
            position = str(rng.choice(list(POSITIONS)))
    elif layout == "many":
        groups = [_group(rng, int(rng.integers(2, MOST_THINGS + 1)))]
    elif layout == "related":
        groups = _distinct(rng, [1, 1])
        relation = str(rng.choice(RELATIONS))
    elif layout == "two":
        counts = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1)][rng.integers(6)]
        groups = _distinct(rng, counts)
    else:
        groups = _distinct(rng, [1, 1, 1])
    background = str(rng.choice(BACKGROUNDS)) if rng.random() < 0.3 else None
    return SceneRequest(tuple(groups), relation, position, background)


def _group(rng: np.random.Generator, count: int, sized: bool = False) -> Group:
    size = str(rng.choice(list(SIZES))) if sized and rng.random() < 0.4 else None
    return Group(count, str(rng.choice(COLOURS)), str(rng.choice(SHAPES)), size)


def _distinct(rng: np.random.Generator, counts) -> list[Group]:
    """Random groups of different colours, with these counts; shapes may repeat."""
    groups: list[Group] = []
    for count in counts:
        group = _group(rng, count)
        while any(group.colour == other.colour for other in groups):
            group = replace(group, colour=str(rng.choice(COLOURS)))
        groups.append(group)
    return groups


def arrange(request: SceneRequest, rng: np.random.Generator) -> Scene:
    """A scene that fulfils the request: random places and sizes without overlap."""
    owners = [group for group in request.groups for _ in range(group.count)]
    crowd = 1.0 if len(owners) < 3 else 0.8
    while True:
        radii = [rng.uniform(*SIZES.get(owner.size or "", ANY_SIZE)) for owner in owners]
        radii = [r if owner.size else r * crowd for r, owner in zip(radii, owners)]
        places = _places(request, radii, rng)
        if places is not None:
            break
        crowd = max(0.6, crowd * 0.97)
    things = tuple(
        Thing(owner.shape, owner.colour, x, y, r) for owner, (x, y), r in zip(owners, places, radii)
    )
    return Scene(things, request.background or str(rng.choice(BACKGROUNDS)))


def _places(request: SceneRequest, radii: list[float], rng: np.random.Generator):
    """Random centres (x, y) of things with these radii; None if they overlap or miss the relation."""
    centres: list[tuple[float, float]] = []
    for index, r in enumerate(radii):
        ranges = POSITIONS[request.position] if request.position and not index else ((0.0, 1.0), (0.0, 1.0))
        x, y = (rng.uniform(max(low, r + 0.02), min(high, 0.98 - r)) for low, high in ranges)
        if any(np.hypot(x - u, y - v) < r + s + MARGIN for (u, v), s in zip(centres, radii)):
            return None
        centres.append((x, y))
    if request.relation:
        first, second = request.groups[:2]
        ends = centres[: first.count], centres[first.count : first.count + second.count]
        if not holds(request.relation, *(tuple(np.mean(end, 0)) for end in ends)):
            return None
    return centres


def holds(relation: str, first: tuple[float, float], second: tuple[float, float], gap=RELATION_GAP) -> bool:
    """Whether the first centre is `relation` (such as "left of") the second.

    The distance along the relation's axis must be at least `gap`, and larger than the one across.
    """
    dx, dy = second[0] - first[0], second[1] - first[1]
    along, across = {
        "left of": (dx, dy),
        "right of": (-dx, dy),
        "above": (dy, dx),
        "below": (-dy, dx),
    }[relation]
    return along >= gap and along > abs(across)
