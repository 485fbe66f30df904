"""`measure`: scores an image of Shapes against its prompt from the pixels, without a learned model."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from imagereward.errors import InputError
from imagereward.images.reading import ImageLike
from imagereward.shapes.corrupt import STRENGTH
from imagereward.shapes.flaws import flaws
from imagereward.shapes.language import read
from imagereward.shapes.render import PAPER
from imagereward.shapes.scene import POSITIONS, RELATION_GAP, SIZES, Group, SceneRequest
from imagereward.shapes.segmentation import MeasuredThing, see, to_pixels

_GOOD_FIT, _NO_FIT = 0.85, 0.5
_MIDDLING = (SIZES["small"][1] + SIZES["large"][0]) / 2
# Distance beyond its bounds at which an attribute's score reaches 0, as a share of the side or, for the
# background, of white.
_SIZE_SLACK, _POSITION_SLACK, _RELATION_SLACK, _PAPER_SLACK = 0.03, 0.15, 0.15, 0.2
_TOLERANCE = 0.02  # error of measured centres, as a share of the side


@dataclass(frozen=True)
class Measurement:
    """The things found in an image, and scores of the image as an answer to a prompt.

    found         the things, the largest first
    background    the nearest of `BACKGROUNDS`
    attributes    {name: score in [0, 1]}; 1 means right:
      colour, shape  the requested ones are present, in the requested numbers
      thing          the same for (colour, shape) pairs: a red circle, not a circle and something red
      count          1 - |found - requested| / max(found, requested), of all things
      relation, size, position, background   only if requested; linear over a short distance beyond bounds
    faithfulness  count times the mean of the other attributes, in [0, 1]
    flaws         {damage: strength} on the scales of `corrupt.STRENGTH`
    cleanliness   product over flaws of 1 / (1 + (strength / strength at level 1)^2), in [0, 1]: a flaw of
                  level 1 halves it; 0 if no thing is found
    faithful      whether every attribute is 1

    colour, shape and thing are: sum over requested kinds of min(found, requested), divided by
    min(all found, all requested), times the share of requested kinds that are present. In shape and thing,
    a malformed thing counts (fit - 0.5) / 0.35 instead of 1, within [0, 1].
    """

    found: tuple[MeasuredThing, ...]
    background: str
    attributes: dict[str, float]
    faithfulness: float
    flaws: dict[str, float]
    cleanliness: float

    @property
    def faithful(self) -> bool:
        """Whether every attribute is 1, which includes that no thing is missing or extra."""
        return all(value == 1 for value in self.attributes.values())


def measure(image: ImageLike, prompt: str | SceneRequest) -> Measurement:
    """Measure an image against a prompt of Shapes: deterministic, without a learned model.

    image    in any form that `read_image` takes; square, at least 32 x 32 pixels; resized to 64 x 64
    prompt   a sentence of the grammar, or a request

    Raises InputError for an image of another size and for a prompt outside the grammar, and the errors of
    `read_image`.
    """
    if not isinstance(prompt, (str, SceneRequest)):
        raise InputError(f"prompt={prompt!r}: expected a string or a SceneRequest")
    request = read(prompt) if isinstance(prompt, str) else prompt
    seen = see(to_pixels(image))
    found = tuple(sorted((piece.thing for piece in seen.pieces), key=lambda thing: -thing.radius))
    attributes = judge(found, seen.paper, request)
    strengths = flaws(seen)
    others = [value for name, value in attributes.items() if name != "count"]
    halves = [1 / (1 + (strength / STRENGTH[name][0]) ** 2) for name, strength in strengths.items()]
    return Measurement(
        found,
        min(PAPER, key=lambda name: abs(PAPER[name] - np.mean(seen.paper))),
        attributes,
        attributes["count"] * _mean(others),
        strengths,
        float(np.prod(halves)) if found else 0.0,
    )


def judge(found: Sequence[MeasuredThing], paper: Sequence[float], request: SceneRequest) -> dict[str, float]:
    """`Measurement.attributes` of `found` things on a paper of this RGB in [0, 1], for a request."""
    groups = request.groups
    weights = [_between(thing.fit, _NO_FIT, _GOOD_FIT) for thing in found]
    asked = [(group.colour, group.shape) for group in groups for _ in range(group.count)]
    there = [(thing.colour, thing.shape) for thing in found]
    attributes = {
        "colour": _agreement([c for c, _ in asked], [c for c, _ in there], [1.0] * len(found)),
        "shape": _agreement([s for _, s in asked], [s for _, s in there], weights),
        "thing": _agreement(asked, there, weights),
        "count": 1 - abs(len(found) - len(asked)) / max(len(found), len(asked)),
    }
    # Sorted along the relation, which decides between groups that request the same things.
    axis = "y" if request.relation in ("above", "below") else "x"
    backwards = request.relation in ("right of", "below")
    members = _members(groups, sorted(found, key=lambda thing: getattr(thing, axis), reverse=backwards))
    if request.relation:
        attributes["relation"] = _relation(request.relation, members[0], members[1])
    sized = [(group.size, things) for group, things in zip(groups, members) if group.size]
    if sized:
        attributes["size"] = float(np.mean([_mean(_size(t.radius, size) for t in m) for size, m in sized]))
    if request.position:
        attributes["position"] = max(
            (_position(thing, request.position) for thing in members[0]), default=0.0
        )
    if request.background:
        attributes["background"] = _background(paper, request.background) if found else 0.0
    return attributes


def _agreement(asked: list, there: list, weights: list[float]) -> float:
    """The scores colour, shape and thing of `Measurement`, for kinds `asked` and `there` with `weights`."""
    if not there:
        return 0.0
    counts = Counter(asked)
    sums = {
        kind: sum(sorted((w for k, w in zip(there, weights) if k == kind), reverse=True)[:count])
        for kind, count in counts.items()
    }
    present = sum(value > 0 for value in sums.values()) / len(counts)
    return min(1.0, sum(sums.values()) / min(len(asked), len(there))) * present


def _members(groups: Sequence[Group], found: Sequence[MeasuredThing]) -> list[list[MeasuredThing]]:
    """The things of each group: those of its colour and shape, else of its colour, else of its shape."""
    members: list[list[MeasuredThing]] = [[] for _ in groups]
    rest = list(found)
    for same in (("colour", "shape"), ("colour",), ("shape",)):
        for place, group in enumerate(groups):
            if not members[place]:
                alike = [t for t in rest if all(getattr(t, s) == getattr(group, s) for s in same)]
                shared = any((g.colour, g.shape) == (group.colour, group.shape) for g in groups[place + 1 :])
                members[place] = alike[: group.count] if shared else alike
                rest = [thing for thing in rest if thing not in members[place]]
    return members


def _relation(relation: str, first: Sequence[MeasuredThing], second: Sequence[MeasuredThing]) -> float:
    """Score of a relation in [0, 1]: 1 if the mean centres are `RELATION_GAP` apart along its axis and closer
    across; linear to 0 over `_RELATION_SLACK`; 0 if a group has no things."""
    if not first or not second:
        return 0.0
    dx, dy = (_mean(getattr(t, a) for t in second) - _mean(getattr(t, a) for t in first) for a in "xy")
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    along = -along if relation in ("right of", "below") else along
    short = max(RELATION_GAP - along, abs(across) - along) - _TOLERANCE
    return _between(-short, -_RELATION_SLACK, 0)


def _size(radius: float, size: str) -> float:
    """Score of a size in [0, 1]; the boundary is half way between small and large."""
    beyond = radius - _MIDDLING if size == "small" else _MIDDLING - radius
    return _between(-beyond, -_SIZE_SLACK, 0)


def _position(thing: MeasuredThing, position: str) -> float:
    beyond = (
        max(low - at, at - high) - _TOLERANCE
        for at, (low, high) in zip((thing.x, thing.y), POSITIONS[position])
    )
    return _between(-max(beyond), -_POSITION_SLACK, 0)


def _background(paper: Sequence[float], background: str) -> float:
    """Score of a background in [0, 1]: 1 if it is the nearest in lightness and not tinted."""
    lightness, tint = float(np.mean(paper)), float(np.ptp(paper))
    nearest = min(abs(lightness - value) for value in PAPER.values())
    beyond = (abs(lightness - PAPER[background]) - nearest) / 2
    return _between(-beyond, -_PAPER_SLACK, 0) * _between(-tint, -0.3, -0.15)


def _between(value: float, low: float, high: float) -> float:
    """(value - low) / (high - low), clipped to [0, 1]."""
    return float(min(1.0, max(0.0, (value - low) / (high - low))))


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0
