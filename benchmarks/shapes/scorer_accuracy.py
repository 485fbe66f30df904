"""Accuracy of a scorer on newly drawn images of Shapes with known truth.

    python -m benchmarks.shapes.scorer_accuracy

Prompts are of the test split, which no training uses. Only clear pairs count: one image is better in
faithfulness or quality and not worse in the other.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

import imagereward as RM
from benchmarks.lib import record
from imagereward.agreement.intervals import ratio_interval
from imagereward.scoring.scorer import Scorer
from imagereward.shapes import MOST_THINGS, Truth, ask, candidates, say
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
# {kind: [P, 2]}: of every prompt the pairs that are ranked right, and all its pairs.
Counts = dict[str, np.ndarray]


def accuracy(scorer: Scorer, prompts: int, seed: int = SEED) -> tuple[Accuracy, Accuracy]:
    """{kind: (share of clear pairs ranked right, their number)}; a tie of the scorer is wrong.

    Twice: with the prompts that the images were drawn for, and with every prompt's images scored against
    another prompt.
    """
    plain, shuffled = counts(scorer, prompts, seed)
    return _shares(plain), _shares(shuffled)


def accuracy_rows(
    scorer: Scorer, prompts: int, seed: int = SEED, most_things: int = MOST_THINGS
) -> list[dict[str, Any]]:
    """`accuracy` as rows, with the 95 % interval over prompts (Student's t).

    most_things  things that a prompt may ask for
    """
    plain, shuffled = counts(scorer, prompts, seed, most_things)
    rows = []
    for kind, each in plain.items():
        share, low, high = ratio_interval(each[:, 0], each[:, 1], bounds=(0, 1))
        other = shuffled[kind].sum(0)
        rows.append(
            {
                "pairs": kind,
                "accuracy": share,
                "low": low,
                "high": high,
                "prompts shuffled": float(other[0] / other[1]),
                "count": int(each[:, 1].sum()),
            }
        )
    return rows


def counts(
    scorer: Scorer, prompts: int, seed: int = SEED, most_things: int = MOST_THINGS
) -> tuple[Counts, Counts]:
    """The pairs of every prompt ranked right, and all, by kind: with its own prompt, and with another."""
    rng = np.random.default_rng([seed, 3])
    drawn = []
    for _ in range(prompts):
        request = ask(rng, "test", most_things)
        drawn.append((say(request, rng), candidates(request, IMAGES, rng)))
    texts = [prompt for prompt, _ in drawn for _ in range(IMAGES)]
    others = texts[IMAGES:] + texts[:IMAGES]
    images = [image for _, group in drawn for image, _ in group]
    scores = scorer.score_pairs(texts + others, images * 2, batch_size=96)  # encodes every image once
    truths = [[truth for _, truth in group] for _, group in drawn]
    return _counts(scores[: len(images)], truths), _counts(scores[len(images) :], truths)


def _counts(scores: list[float], truths: list[list[Truth]]) -> Counts:
    found: Counts = defaultdict(lambda: np.zeros((len(truths), 2), int))
    for number, group in enumerate(truths):
        start = number * IMAGES
        for a, better in enumerate(group):
            for b, worse in enumerate(group):
                if better.clearly_beats(worse):
                    for kind in kinds(better, worse):
                        found[kind][number] += (scores[start + a] > scores[start + b], 1)
    return dict(sorted(found.items()))


def _shares(counted: Counts) -> Accuracy:
    sums = {kind: each.sum(0) for kind, each in counted.items()}
    return {kind: (float(right / pairs), int(pairs)) for kind, (right, pairs) in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ImageReward-tiny", help="what imagereward.load takes")
    parser.add_argument("--prompts", type=int, default=3000)
    parser.add_argument("--most-things", type=int, default=MOST_THINGS, help="things of a prompt")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", help="name of a results file")
    record.add_option(parser)
    options = parser.parse_args()
    if options.out:
        record.refuse_changes(options.allow_changes)
    scorer = RM.load(options.model)
    rows = accuracy_rows(scorer, options.prompts, options.seed, options.most_things)
    print(table(rows))
    if options.out:
        record.write(
            options.out,
            {
                "model": options.model,
                "prompts": options.prompts,
                "seed": options.seed,
                "most_things": options.most_things,
                "rows": rows,
                "environment": record.environment(scorer.device),
            },
        )


if __name__ == "__main__":
    main()
