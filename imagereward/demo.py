"""`imagereward demo`: ranks newly drawn Shapes with the model in the package, beside their true utility."""

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imagereward import shapes
from imagereward.checkpoints.loading import load
from imagereward.scoring.ranking import Ranking, thumbnail
from imagereward.writing import check_free, write_text

MODEL = "ImageReward-tiny"
_STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem; max-width: 68rem;
       color: #1d2430; background: #fff }
h1 { font-size: 1.5rem; margin: 0 0 .3rem } h2 { font-size: 1.05rem; margin: 2rem 0 .6rem }
p { max-width: 46rem; color: #4a5568; margin: .3rem 0 }
.row { display: flex; flex-wrap: wrap; gap: .8rem }
figure { margin: 0; width: 8.5rem; border: 1px solid #d9dee7; border-radius: .5rem; overflow: hidden;
         break-inside: avoid }
img { width: 100%; display: block; image-rendering: pixelated }
figcaption { padding: .4rem .6rem .5rem; font-size: .85rem }
figcaption b { font-size: 1rem } .truth { color: #4a5568 } .good { color: #14713d } .bad { color: #b3261e }
@media (prefers-color-scheme: dark) {
  body { color: #e4e8ef; background: #14181f } p, .truth { color: #a8b2c1 } figure { border-color: #333c4a }
  .good { color: #63d297 } .bad { color: #ff8a80 } }
"""


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
    right = [pair for each in judged for pair in each.clear_pairs]
    sections = "".join(_section(each) for each in judged)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{MODEL}: a ranking</title><style>{_STYLE}</style></head><body>
<h1>What {MODEL} prefers</h1>
<p>Pictures of 64 pixels, drawn just now, best first by the model's reward. Below each: what was done to it
when it was drawn. Of the {len(right)} pairs in which one picture is clearly better, the model ranks
{sum(right)} right.</p>
<p>This small model knows Shapes, the drawn world on this page, and nothing else. For real pictures, load
<code>ImageReward-v1.0</code>.</p>
{sections}</body></html>
"""


def write_page(judged: list[Judged], out: Path, overwrite: bool = False) -> Path:
    """Write `page` to the file `out`; returns its path.

    Raises OutputError if the file exists and `overwrite` is false, or if it cannot be written.
    """
    return write_text(check_free(out, overwrite), page(judged))


def _section(judged: Judged) -> str:
    ranking = judged.ranking
    figures = "".join(
        f'<figure><img src="{thumbnail(ranking.images[index])}" alt="candidate {index}">'
        f"<figcaption><b>{ranking.ranks[index]}</b> &nbsp; {ranking.rewards[index]:+.2f}<br>"
        f'<span class="{"bad" if judged.truths[index].utility() else "good"}">'
        f"{html.escape(judged.truths[index].in_words())}</span><br>"
        f'<span class="truth">utility {judged.truths[index].utility():.2f}</span></figcaption></figure>'
        for index in ranking.order
    )
    return f'<h2>{html.escape(ranking.prompt)}</h2><div class="row">{figures}</div>'
