"""Accuracy of a scorer on newly drawn images of Shapes with known truth.

    python -m benchmarks.shapes.scorer_accuracy

Prompts are of the test split, which no training uses. Only clear pairs count: one image is better in
faithfulness or quality and not worse in the other.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

import imagereward as RM
from benchmarks.lib import record
from imagereward.scoring.scorer import Scorer
from imagereward.shapes import Truth, ask, candidates, say
from imagereward.table import table

SEED = 20_260
IMAGES = 6


def kinds(better: Truth, worse: Truth) -> Iterator[str]:
    """The kinds of pairs that a clear pair belongs to, such as "colour"; several or none."""
    yield "all clear pairs"
    same_quality = (better.quality, better.damage) == (worse.quality, worse.damage)
    if better.faithfulness == worse.faithfulness == 0:
        yield "quality"
        if better.quality == 0:
            yield f"quality: {worse.damage} {worse.quality}"
    if better.faithfulness == 0 and worse.faithfulness == 1 and same_quality:
        yield "faithfulness, one mistake"
        yield f"faithfulness: {worse.mistakes[0]}"
    if better.faithfulness == 0 and worse.faithfulness == 3 and same_quality:
        yield "faithfulness: another scene"


Accuracy = dict[str, tuple[float, int]]


def accuracy(scorer: Scorer, prompts: int, seed: int = SEED) -> tuple[Accuracy, Accuracy]:
    """{kind: (share of clear pairs ranked right, their number)}; a tie of the scorer is wrong.

    Twice: with the prompts that the images were drawn for, and with every prompt's images scored against
    another prompt.
    """
    rng = np.random.default_rng([seed, 3])
    drawn = []
    for _ in range(prompts):
        request = ask(rng, "test")
        drawn.append((say(request, rng), candidates(request, IMAGES, rng)))
    texts = [prompt for prompt, _ in drawn for _ in range(IMAGES)]
    others = texts[IMAGES:] + texts[:IMAGES]
    images = [image for _, group in drawn for image, _ in group]
    scores = scorer.score_pairs(texts + others, images * 2, batch_size=96)  # encodes every image once
    truths = [[truth for _, truth in group] for _, group in drawn]
    return _shares(scores[: len(images)], truths), _shares(scores[len(images) :], truths)


def _shares(scores: list[float], truths: list[list[Truth]]) -> Accuracy:
    right: dict[str, list[bool]] = defaultdict(list)
    for start, group in zip(range(0, len(scores), IMAGES), truths):
        for a, better in enumerate(group):
            for b, worse in enumerate(group):
                if better.clearly_beats(worse):
                    for kind in kinds(better, worse):
                        right[kind].append(scores[start + a] > scores[start + b])
    return {kind: (float(np.mean(hits)), len(hits)) for kind, hits in sorted(right.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ImageReward-tiny", help="what imagereward.load takes")
    parser.add_argument("--prompts", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", help="name of a results file")
    record.add_option(parser)
    options = parser.parse_args()
    if options.out:
        record.refuse_changes(options.allow_changes)
    scorer = RM.load(options.model)
    plain, shuffled = accuracy(scorer, options.prompts, options.seed)
    rows = [
        {
            "pairs": kind,
            "accuracy": plain[kind][0],
            "prompts shuffled": shuffled[kind][0],
            "count": plain[kind][1],
        }
        for kind in plain
    ]
    print(table(rows))
    if options.out:
        record.write(
            options.out,
            {
                "model": options.model,
                "prompts": options.prompts,
                "seed": options.seed,
                "rows": rows,
                "environment": record.environment(scorer.device),
            },
        )


if __name__ == "__main__":
    main()
