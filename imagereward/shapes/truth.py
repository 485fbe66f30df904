"""What is true of a (prompt, image): its level on both axes, its utility, and who would prefer it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imagereward.errors import InputError
from imagereward.shapes.corrupt import LEVELS

_WORDS = {
    "colour": "wrong colour",
    "shape": "wrong shape",
    "count": "wrong count",
    "relation": "wrong relation",
    "missing": "one thing missing",
    "extra": "one thing too many",
}


@dataclass(frozen=True)
class Truth:
    """Levels of damage, 0 none to 3 worst, and what was done.

    faithfulness  how many mistakes were made; 3 is another scene altogether
    mistakes      which, of `imagereward.shapes.MISTAKES`, or ("scene",)
    quality       how strong the damage to the pixels is
    damage        which, of `imagereward.shapes.DAMAGES`; None at level 0
    """

    faithfulness: int = 0
    mistakes: tuple[str, ...] = ()
    quality: int = 0
    damage: str | None = None

    def __post_init__(self) -> None:
        for name in ("faithfulness", "quality"):
            if getattr(self, name) not in range(LEVELS + 1):
                raise InputError(f"{name}={getattr(self, name)!r}: expected a level in 0..{LEVELS}")

    def utility(self, taste: tuple[float, float] = (1.0, 0.75)) -> float:
        """-(taste[0] * faithfulness + taste[1] * quality): 0 is flawless, -5.25 the worst.

        The default taste is the world's own: one wrong attribute weighs as much as 1 1/3 levels of
        damage to the pixels.
        """
        return 0.0 - taste[0] * self.faithfulness - taste[1] * self.quality

    def in_words(self) -> str:
        """What was done to the image, for people: "wrong colour; blur 2", or "flawless"."""
        mistakes = ["another scene" if m == "scene" else _WORDS[m] for m in self.mistakes]
        damage = [f"{self.damage} {self.quality}"] if self.damage else []
        return "; ".join([*mistakes, *damage]) or "flawless"

    def clearly_beats(self, other: "Truth") -> bool:
        """Better on one axis and not worse on the other: what any taste with positive weights agrees on."""
        mine, theirs = (self.faithfulness, self.quality), (other.faithfulness, other.quality)
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs))


@dataclass(frozen=True)
class Annotator:
    """Someone who ranks images by utility, not perfectly, and calls close ones equal.

    noise  standard deviation added to every utility
    taste  weights of faithfulness and quality (`Truth.utility`)
    tie    images whose noisy utilities lie within this of the one ranked before share its rank
    """

    noise: float = 0.25
    taste: tuple[float, float] = (1.0, 0.75)
    tie: float = 0.2

    def rank(self, truths: Sequence[Truth], rng: np.random.Generator) -> list[int]:
        """Ranks of the images, 1 the best, ties sharing one and none left out after them."""
        felt = np.array([truth.utility(self.taste) for truth in truths])
        felt += self.noise * rng.standard_normal(len(truths))
        ranks = np.empty(len(truths), int)
        rank, last = 0, np.inf
        for index in np.argsort(-felt, kind="stable"):
            if last - felt[index] > self.tie or not rank:
                rank, last = rank + 1, felt[index]
            ranks[index] = rank
        return ranks.tolist()
