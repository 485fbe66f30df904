"""`imagereward demo`: ranks newly drawn Shapes with the model in the package, beside their true utility."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imagereward import shapes
from imagereward.checkpoints.loading import load
from imagereward.pages import render
from imagereward.scoring.ranking import Ranking, thumbnail
from imagereward.writing import check_free, write_text

MODEL = "ImageReward-tiny"


@dataclass(frozen=True)
class Judged:
    """A prompt's candidate images: the model's ranking of them, and the truth about each."""

    ranking: Ranking
    truths: list[shapes.Truth]

    @property
    def clear_pairs(self) -> list[bool]:
        """For each pair of which one image is clearly better, whether the model scores that image higher."""
        rewards, count = self.ranking.rewards, len(self.truths)
        return [
            rewards[better] > rewards[worse]
            for better in range(count)
            for worse in range(count)
            if self.truths[better].clearly_beats(self.truths[worse])
        ]

    def rows(self) -> list[dict]:
        """A dict for each image, best first: rank and reward by the model, true utility, damage in words."""
        return [
            {
                "rank": self.ranking.ranks[index],
                "reward": self.ranking.rewards[index],
                "utility": self.truths[index].utility(),
                "truth": self.truths[index].in_words(),
            }
            for index in self.ranking.order
        ]


def judge(prompts: int, images: int, seed: int, device: str | None = None) -> list[Judged]:
    """Draw prompts of the test split, with candidate images of random damage, and rank them.

    prompts, images   number of prompts, and of images for each
    """
    scorer = load(MODEL, device)
    rng = np.random.default_rng([seed, 77])
    judged = []
    for _ in range(prompts):
        request = shapes.ask(rng, "test")
        prompt = shapes.say(request, rng)
        pictures, truths = zip(*shapes.candidates(request, images, rng))
        judged.append(Judged(scorer.rank(prompt, list(pictures)), list(truths)))
    return judged


def page(judged: list[Judged]) -> str:
    """A self-contained HTML page with the images of each prompt in the model's order, and their truth."""
    pairs = [pair for each in judged for pair in each.clear_pairs]
    return render("demo.html", model=MODEL, judged=judged, pairs=pairs, thumbnail=thumbnail)


def write_page(judged: list[Judged], out: Path, overwrite: bool = False) -> Path:
    """Write `page` to the file `out`; returns its path.

    Raises OutputError if the file exists and `overwrite` is false, or if it cannot be written.
    """
    return write_text(check_free(out, overwrite), page(judged))
