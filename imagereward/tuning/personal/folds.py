"""Parts of a cross-validation: which choices are held out together, and which epoch to take."""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from imagereward.errors import InputError
from imagereward.tuning.personal.choice import Choice, image_key

# With fewer prompts, what is held out together is decided by images alone.
FEWEST_PROMPTS = 8
FEWEST = 4  # groups, to hold out any
PROMPTS, IMAGES, SINGLE = "prompts", "images", "single choices"


class Groups(NamedTuple):
    """What is held out as a whole.

    of    the number of each choice's group, from 0
    unit  `PROMPTS`: all choices about a prompt, or about images that belong to it; `IMAGES`: all choices that
          are connected by images, while prompts recur; `SINGLE`: each choice alone, while images recur, so
          that held-out choices say nothing about new images
    """

    of: list[int]
    unit: str


def groups_of(items: Sequence[Choice]) -> Groups:
    """The groups of choices: by prompts and images, if these are at least 8; or else by images alone.

    Choices are held out one by one only where nothing else is left: where their images connect them into
    fewer than 4 groups, or more than half of them into one.

    Raises InputError for fewer than 4 choices.
    """
    if len(items) < FEWEST:
        raise InputError(f"{len(items)} choices that say something: expected at least {FEWEST}")
    images: list[list[Hashable]] = [[image_key(image) for image in choice.images] for choice in items]
    both = [[*keys, ("prompt", choice.prompt)] for keys, choice in zip(images, items, strict=True)]
    for keys, fewest, unit in ((both, FEWEST_PROMPTS, PROMPTS), (images, FEWEST, IMAGES)):
        found = _connected(keys)
        if max(found) + 1 >= fewest and max(np.bincount(found)) <= len(items) / 2:
            return Groups(found, unit)
    return Groups(list(range(len(items))), SINGLE)


def _connected(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """The number of each row's component, by their first rows: rows with a key in common are in one."""
    above = list(range(len(keys)))

    def root(row: int) -> int:
        while above[row] != row:
            above[row] = row = above[above[row]]
        return row

    first: dict[Hashable, int] = {}
    for row, each in enumerate(keys):
        for key in each:
            above[root(row)] = root(first.setdefault(key, row))
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(row), len(numbers)) for row in range(len(keys))]


def split(groups: Sequence[int], folds: int, seed: int) -> list[list[int]]:
    """Indices of the choices that each fold holds out; every choice is held out once.

    folds  at most as many as there are groups

    Which groups are together depends on `seed` alone.
    """
    names = sorted(set(groups))
    count = min(folds, len(names))
    order = np.random.default_rng([seed, 11]).permutation(len(names))
    fold_of = {names[index]: place % count for place, index in enumerate(order)}
    return [[i for i, group in enumerate(groups) if fold_of[group] == fold] for fold in range(count)]


def held_out(groups: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the choices (that select the epoch, that measure): together `share` of the groups.

    Half of the share is each's: at least one group selects, two measure, and one is left.
    """
    names = sorted(set(groups))
    count = min(len(names) - 1, max(3, round(share * len(names))))
    order = np.random.default_rng([seed, 12]).permutation(len(names))[:count]
    halves = [{names[index] for index in part} for part in (order[: count // 2], order[count // 2 :])]
    selecting, measuring = ([i for i, group in enumerate(groups) if group in half] for half in halves)
    return selecting, measuring


def best_epoch(curves: Sequence[Sequence[float]]) -> int:
    """The epoch, from 1, with the lowest mean loss over folds.

    curves  held-out losses [F][E + 1] of F folds, after 0, 1, ... epochs. A fold that stopped early counts
            with its last loss afterwards
    """
    longest = max(map(len, curves))
    if longest < 2:
        raise InputError("no fold was trained for an epoch")
    means = [np.mean([curve[min(epoch, len(curve) - 1)] for curve in curves]) for epoch in range(longest)]
    if not all(math.isfinite(mean) for mean in means):
        raise InputError("a held-out loss is not finite: try a lower learning_rate")
    return 1 + int(np.argmin(means[1:]))


def nested_epochs(curves: Sequence[Sequence[float]]) -> list[int]:
    """For each fold the epoch that the *other* folds choose, so that its figure is no best of many."""
    return [best_epoch([other for j, other in enumerate(curves) if j != i]) for i in range(len(curves))]
