"""`Truth`, the known damage and utility of a drawn image, and `Annotator`, a noisy judge of utilities."""

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
    """Levels of damage to an image, from 0 (none) to 3 (worst).

    faithfulness  number of mistakes; 3 stands for another scene
    mistakes      of `imagereward.shapes.MISTAKES`, or ("scene",) at level 3
    quality       strength of the damage to the pixels
    damage        of `imagereward.shapes.DAMAGES`; None at level 0

    Raises InputError for a level outside 0 to 3.
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
        """-(taste[0] * faithfulness + taste[1] * quality): by default 0 (flawless) to -5.25 (worst).

        By default, one mistake weighs as much as 1 1/3 levels of damage to the pixels.
        """
        return 0.0 - taste[0] * self.faithfulness - taste[1] * self.quality

    def in_words(self) -> str:
        """The damage in words: "wrong colour; blur 2", or "flawless"."""
        mistakes = ["another scene" if m == "scene" else _WORDS[m] for m in self.mistakes]
        damage = [f"{self.damage} {self.quality}"] if self.damage else []
        return "; ".join([*mistakes, *damage]) or "flawless"

    def clearly_beats(self, other: "Truth") -> bool:
        """Whether this image is better in faithfulness or quality and not worse in the other.

        Every taste with positive weights then prefers it.
        """
        mine, theirs = (self.faithfulness, self.quality), (other.faithfulness, other.quality)
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs))


@dataclass(frozen=True)
class Annotator:
    """A simulated annotator, who ranks images by noisy utility and ties close ones.

    noise  standard deviation of the normal noise added to every utility
    taste  weights of faithfulness and quality (`Truth.utility`)
    tie    an image whose noisy utility is at most this much below the first of a rank shares that rank
    """

    noise: float = 0.25
    taste: tuple[float, float] = (1.0, 0.75)
    tie: float = 0.2

    def rank(self, truths: Sequence[Truth], rng: np.random.Generator) -> list[int]:
        """Ranks of the images, 1 the best; tied images share a rank, and ranks have no gaps."""
        felt = np.array([truth.utility(self.taste) for truth in truths])
        felt += self.noise * rng.standard_normal(len(truths))
        ranks = np.empty(len(truths), int)
        rank, last = 0, np.inf
        for index in np.argsort(-felt, kind="stable"):
            if last - felt[index] > self.tie or not rank:
                rank, last = rank + 1, felt[index]
            ranks[index] = rank
        return ranks.tolist()
