"""Which images are asked about next: the rule that picked them, and how it picks.

Scores are lists with a number for each candidate image; pairs are indices (i, j) of two of them.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Pair = tuple[int, int]
# Every so many questions, a random one is asked, so that clear preferences are learned from as well.
RANDOM_EVERY = 3
# The rules, by the names that the page knows.
CLOSEST, REFITS, RANDOM, AGAIN = "closest", "refits", "random", "again"


class Question(NamedTuple):
    """The images that are asked about, in the order of the page, and the rule that picked them."""

    images: tuple[int, ...]
    rule: str


def disagreement(refits_B_N: Sequence[Sequence[float]]) -> np.ndarray:
    """[N, N]: how much scorers disagree about which of two images is better; 0 where all say the same.

    refits_B_N   scores by B adapters that learned from resampled choices

    The standard deviation over the B of the probability sigmoid((s_i - s_j) / spread) that i is preferred to
    j, where a scorer's spread is the standard deviation of its scores. Two images that all adapters hold for
    equally good, such as copies, have none: more choices would tell nothing.
    """
    scores = np.asarray(refits_B_N, dtype=np.float64)
    spread = scores.std(1, keepdims=True)
    scores = scores / np.where(spread > 0, spread, 1.0)
    apart = scores[:, :, None] - scores[:, None, :]
    return (1 / (1 + np.exp(-apart))).std(0)


def pick(
    left: Sequence[Pair],
    images: Sequence[int],
    shown: int,
    scores: Sequence[float],
    refits: np.ndarray | None,
    source: random.Random,
    number: int,
) -> Question:
    """The next question: a pair of `left`, and further images beside it, in random order.

    left     pairs of one prompt, or of several that were asked about as often, that were not asked about
    images   for each candidate image the number of its prompt
    shown    most images of a question, from 2 on
    scores   by the scorer as it is now
    refits   `disagreement`; None before there are refits: the pair with the closest scores is picked then
    number   questions that were answered so far: every third is random

    Further images are those of the pair's prompt that are, on average, as informative beside the chosen ones.
    """
    value: Callable[[int, int], float]  # how much is learned from comparing two images
    if number % RANDOM_EVERY == RANDOM_EVERY - 1:
        rule, value = RANDOM, lambda i, j: source.random()
    elif refits is None:
        rule, value = CLOSEST, lambda i, j: -abs(scores[i] - scores[j])
    else:
        rule, value = REFITS, lambda i, j: float(refits[i, j])
    chosen = list(max(left, key=lambda pair: value(*pair)))
    others = [i for i, prompt in enumerate(images) if prompt == images[chosen[0]] and i not in chosen]
    while len(chosen) < shown and others:
        best = max(others, key=lambda i: sum(value(i, j) for j in chosen))
        others.remove(best)
        chosen.append(best)
    source.shuffle(chosen)
    return Question(tuple(chosen), rule)
