"""Three tastes in Shapes that differ from ImageReward-tiny's, and people's rankings by them.

A candidate image may have a group painted red, and things beside those that the prompt asks for, besides the
mistakes and damages of `shapes.candidate`: so every taste finds images that differ in what it is about.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image

from imagereward import shapes
from imagereward.shapes.corrupt import damaged, unfaithful
from imagereward.shapes.scene import COLOURS, SHAPES

TASTES = ("red", "calm", "quality")
NOISE, TIE = 0.25, 0.2  # of `shapes.Annotator`
RED, CALM = 2.0, 1.0  # utility of red things, and of each thing that is not there
REPAINTED, CROWDED = 0.35, 0.35  # shares of images
MOST = 4  # things in a picture


@dataclass(frozen=True)
class Candidate:
    """A drawn image and what a taste may like about it.

    red      whether anything in it is red
    things   how many there are
    plain    utility for whoever has no special taste (`Truth.utility`)
    damage   level of damage, 0 to 3
    """

    image: PIL.Image.Image
    red: bool
    things: int
    plain: float
    damage: int

    def felt(self, taste: str) -> float:
        """What a taste adds: the part of the utility that ImageReward-tiny does not know."""
        return {"red": RED * self.red, "calm": -CALM * self.things, "quality": 0.0}[taste]

    def utility(self, taste: str) -> float:
        """Utility for a person with this taste; for "quality" damages alone count."""
        return -1.0 * self.damage if taste == "quality" else self.plain + self.felt(taste)

    def special(self, taste: str) -> float:
        """What the taste is about; it is silent on two images for which this is equal."""
        return -1.0 * self.damage if taste == "quality" else self.felt(taste)


@dataclass(frozen=True)
class Asked:
    """A prompt and its candidate images."""

    prompt: str
    candidates: tuple[Candidate, ...]

    def record(self, taste: str, rng: np.random.Generator) -> dict:
        """A person's choice as `personalise` takes it: {prompt, images, ranking}."""
        felt = np.array([each.utility(taste) for each in self.candidates])
        felt += NOISE * rng.standard_normal(len(felt))
        ranks = np.empty(len(felt), int)
        rank, last = 0, np.inf
        for index in np.argsort(-felt, kind="stable"):
            if last - felt[index] > TIE or not rank:
                rank, last = rank + 1, felt[index]
            ranks[index] = rank
        images = [each.image for each in self.candidates]
        return {"prompt": self.prompt, "images": images, "ranking": ranks.tolist()}


def asked(count: int, split: str, seed: int, images: int = 4) -> list[Asked]:
    """`count` prompts of a split with `images` candidates each; equal arguments give equal ones."""
    rng = np.random.default_rng([seed, ("train", "valid", "test").index(split), 19])
    found = []
    for _ in range(count):
        request = shapes.ask(rng, split)
        candidates = tuple(_candidate(request, rng) for _ in range(images))
        found.append(Asked(shapes.say(request, rng), candidates))
    return found


def rankings(taste: str, count: int, seed: int) -> list[dict]:
    """`count` rankings of 4 images by a person with this taste; prompts of the train split."""
    rng = np.random.default_rng([seed, 23])
    records: list[dict] = []
    for each in asked(2 * count, "train", seed):
        record = each.record(taste, rng)
        if len(set(record["ranking"])) > 1 and len(records) < count:
            records.append(record)
    return records


def _candidate(request: shapes.SceneRequest, rng: np.random.Generator) -> Candidate:
    faithfulness = int(rng.choice(4, p=(0.5, 0.35, 0.1, 0.05)))
    quality = int(rng.choice(4, p=(0.5, 0.2, 0.15, 0.15)))
    drawn, mistakes = unfaithful(request, faithfulness, rng)
    groups = list(drawn.groups)
    if rng.random() < REPAINTED:
        at = int(rng.integers(len(groups)))
        groups[at] = replace(groups[at], colour="red")
    if rng.random() < CROWDED and (room := MOST - sum(group.count for group in groups)) > 0:
        free = [colour for colour in COLOURS if colour not in {group.colour for group in groups}]
        extra = shapes.Group(int(rng.integers(1, room + 1)), str(rng.choice(free)), str(rng.choice(SHAPES)))
        groups.append(extra)
    drawn = replace(drawn, groups=tuple(groups))
    scene = shapes.arrange(drawn, rng)
    damage = str(rng.choice(shapes.DAMAGES)) if quality else None
    pixels = damaged(scene, damage, quality, rng) if damage else shapes.draw(scene, rng)
    plain = shapes.Truth(faithfulness, mistakes, quality, damage).utility()
    red = any(group.colour == "red" for group in groups)
    return Candidate(shapes.to_image(pixels), red, drawn.total, plain, quality)


def agreement(
    taste: str, cases: Sequence[Asked], scores: Sequence[Sequence[float]]
) -> tuple[float, float, int, int]:
    """(agreement with the taste, agreement where it is silent, pairs of each) of scores of all candidates.

    The taste: pairs that differ in what it is about, ordered by its utility without noise. Silent: pairs that
    do not, ordered by the utility of a person without it.
    """
    right, counts = [0, 0], [0, 0]
    for case, row in zip(cases, scores, strict=True):
        for i, first in enumerate(case.candidates):
            for j, second in enumerate(case.candidates[:i]):
                silent = first.special(taste) == second.special(taste)
                ahead = first.plain - second.plain if silent else first.utility(taste) - second.utility(taste)
                if ahead:
                    counts[silent] += 1
                    right[silent] += (row[i] - row[j]) * ahead > 0
    return right[0] / counts[0], right[1] / counts[1], counts[0], counts[1]
