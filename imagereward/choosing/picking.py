"""pick: the images of the next question, by disagreement of refits, closest scores, or chance.

N candidate images, P pairs of them, B adapters that learned from resampled choices.
"""

from typing import NamedTuple

import numpy as np

# Every so many questions, a random one is asked, so that clear preferences are learned from as well.
RANDOM_EVERY = 3
# The rules, by the names that the page knows.
CLOSEST, REFITS, RANDOM, AGAIN = "closest", "refits", "random", "again"


class Question(NamedTuple):
    """The images that are asked about, in the order of the page, and the rule that picked them."""

    images: tuple[int, ...]
    rule: str


def disagreement(refits_B_N: np.ndarray, first_P: np.ndarray, second_P: np.ndarray) -> np.ndarray:
    """[P]: how much scorers disagree about which of two images is better; 0 where all say the same.

    refits_B_N          scores by B adapters that learned from resampled choices
    first_P, second_P   indices of the images of each pair

    The standard deviation over the B of the probability sigmoid((s_i - s_j) / spread) that i is preferred to
    j, where a scorer's spread is the standard deviation of its scores. Two images that all adapters hold for
    equally good, such as copies, have none: more choices would tell nothing.
    """
    spread = refits_B_N.std(1, keepdims=True)
    apart = (refits_B_N[:, first_P] - refits_B_N[:, second_P]) / np.where(spread > 0, spread, 1.0)
    return (1 / (1 + np.exp(-apart))).std(0)


def pick(
    left_P_2: np.ndarray,
    prompts_N: np.ndarray,
    shown: int,
    scores_N: np.ndarray,
    refits_B_N: np.ndarray | None,
    source: np.random.Generator,
    number: int,
) -> Question:
    """The next question: a pair of `left_P_2`, and further images beside it, in random order.

    left_P_2    image indices of the pairs not asked about yet, of the prompts that were asked about least
    prompts_N   for each candidate image the number of its prompt
    shown       most images of a question, from 2 on
    scores_N    by the scorer as it is now
    refits_B_N  as of `disagreement`; None: the pair with the closest scores is picked
    number      questions that were answered so far: every third is random

    Further images are of the pair's prompt: those that tell most, on average, beside the chosen ones.
    """
    rule = CLOSEST if refits_B_N is None else REFITS
    if number % RANDOM_EVERY == RANDOM_EVERY - 1:
        rule = RANDOM

    def told(first_P: np.ndarray, second_P: np.ndarray) -> np.ndarray:
        """How much is learned from comparing two images."""
        if rule == RANDOM:
            return source.random(len(first_P))
        if refits_B_N is None:
            return np.nan_to_num(-np.abs(scores_N[first_P] - scores_N[second_P]), nan=-np.inf)
        return disagreement(refits_B_N, first_P, second_P)

    chosen = left_P_2[np.argmax(told(*left_P_2.T))].tolist()
    others = np.setdiff1d(np.flatnonzero(prompts_N == prompts_N[chosen[0]]), chosen)
    while len(chosen) < shown and len(others):
        best = np.argmax(sum(told(others, np.full_like(others, image)) for image in chosen))
        chosen.append(int(others[best]))
        others = np.delete(others, best)
    return Question(tuple(source.permutation(chosen).tolist()), rule)
