"""Parts of a cross-validation: which choices are held out together, and which epoch to take."""

import math
from collections.abc import Sequence

import numpy as np

from imagereward.errors import InputError
from imagereward.tuning.personal.choices import Choice

# With fewer prompts, choices are held out one by one, though those of a prompt resemble each other.
FEWEST_PROMPTS = 8
FEWEST = 4  # groups, to hold out any


def groups_of(items: Sequence[Choice]) -> list[int]:
    """The number of each choice's group, which is held out as a whole: its prompt's, or its own.

    Raises InputError for fewer than 4 groups.
    """
    prompts = list(dict.fromkeys(choice.prompt for choice in items))
    if len(prompts) >= FEWEST_PROMPTS:
        return [prompts.index(choice.prompt) for choice in items]
    if len(items) < FEWEST:
        raise InputError(f"{len(items)} choices that say something: expected at least {FEWEST}")
    return list(range(len(items)))


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


def held_out(groups: Sequence[int], share: float, seed: int) -> list[int]:
    """Indices of the choices that are held out: `share` of the groups, at least one and not all."""
    names = sorted(set(groups))
    count = min(len(names) - 1, max(1, round(share * len(names))))
    order = np.random.default_rng([seed, 12]).permutation(len(names))
    out = {names[index] for index in order[:count]}
    return [index for index, group in enumerate(groups) if group in out]


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
    if len(curves) == 1:
        return [best_epoch(curves)]
    return [best_epoch([other for j, other in enumerate(curves) if j != i]) for i in range(len(curves))]
