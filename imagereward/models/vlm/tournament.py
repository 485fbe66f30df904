"""Strengths of a group of images from comparisons of pairs, by Bradley-Terry or win rates."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from imagereward.errors import InputError

METHODS = ("bradley-terry", "win-rate")
# A win and a loss of this share against an image of strength 0 keep strengths finite.
PRIOR = 0.1
STEPS = 200


class Outcome(NamedTuple):
    """The probability `share` in [0, 1] that image `first` is better than image `second`."""

    first: int
    second: int
    share: float


def schedule(count: int, budget: int | None = None) -> list[tuple[int, int]]:
    """Pairs of `count` images to compare: all, or the first `budget` of them.

    Pairs are in order of their distance in a ring, so that the first `count` connect all images, and every
    image is in about equally many. Raises InputError for a budget of less than count - 1, which leaves images
    unconnected.
    """
    pairs, seen = [], set()
    for distance in range(1, count // 2 + 1):
        for first in range(count):
            pair = (first, (first + distance) % count)
            if frozenset(pair) not in seen:
                seen.add(frozenset(pair))
                pairs.append(pair)
    if budget is None:
        return pairs
    if budget < count - 1:
        raise InputError(f"budget={budget} comparisons for {count} images: expected at least {count - 1}")
    return pairs[:budget]


def strengths(count: int, outcomes: Sequence[Outcome], method: str = "bradley-terry") -> np.ndarray:
    """float64 [count]: log odds against an average image, of mean 0; or win rates in [0, 1].

    Bradley-Terry: P(first better) = sigmoid(strength of first - strength of second) is fitted to the shares
    by Newton's method, with a weak prior towards 0. A win rate is the mean share of an image's comparisons;
    of an image without one it is 1/2. Raises InputError for another method.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    if method == "win-rate":
        shares: list[list[float]] = [[] for _ in range(count)]
        for first, second, share in outcomes:
            shares[first].append(share)
            shares[second].append(1 - share)
        return np.array([np.mean(each) if each else 0.5 for each in shares])
    fitted = np.zeros(count)
    for _ in range(STEPS):
        own = 1 / (1 + np.exp(-fitted))
        gradient = PRIOR * (1 - 2 * own)
        curvature = np.diag(2 * PRIOR * own * (1 - own))
        for first, second, share in outcomes:
            expected = 1 / (1 + np.exp(fitted[second] - fitted[first]))
            weight = expected * (1 - expected)
            gradient[first] += share - expected
            gradient[second] -= share - expected
            curvature[[first, second], [first, second]] += weight
            curvature[[first, second], [second, first]] -= weight
        step = np.linalg.solve(curvature + 1e-9 * np.eye(count), gradient)
        fitted += np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-10:
            break
    return fitted - fitted.mean()
