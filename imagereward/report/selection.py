"""Which images a report shows."""

from dataclasses import dataclass

import numpy as np

from imagereward.report.figures import Agreement, by_prompt
from imagereward.report.scores import Scores

EXTREMES = 6  # images at either end of all
PROMPT_EXTREMES = 3  # and of one prompt
DISAGREEMENTS = 4  # images either way, of one pair of scorers
MOST_PAIRS = 3  # pairs of scorers


@dataclass(frozen=True)
class Ends:
    """Rows at both ends, the most extreme first; of several images of equal score, the first."""

    best: list[int]
    worst: list[int]


@dataclass(frozen=True)
class Disagreement:
    """Rows that one scorer places high and the other low, and the other way round.

    above_N_2 is the share of images that each of the two places below a row's; NaN without both scores.
    """

    scorers: tuple[int, int]
    first_high: list[int]
    second_high: list[int]
    above_N_2: np.ndarray


def overall(scores: Scores, by: int) -> Ends:
    """The best and the worst of all images, no prompt twice at one end where there are prompts enough."""
    rows = np.flatnonzero(np.isfinite(scores.scores_N_S[:, by]))
    return _ends(rows, scores, by, EXTREMES, len(rows) // 2)


def prompts_to_show(scores: Scores, by: int, most: int) -> list[tuple[int, Ends]]:
    """(prompt, its ends) of the prompts in whose images scores differ most, that is, where choosing pays."""
    values, found = scores.scores_N_S[:, by], []
    for group in by_prompt(scores.prompt_N):
        rows = group[np.isfinite(values[group])]
        if len(rows) > 1 and np.ptp(values[rows]):
            found.append((float(np.ptp(values[rows])), rows))
    found.sort(key=lambda pair: -pair[0])
    return [
        (int(scores.prompt_N[rows[0]]), _ends(rows, scores, by, PROMPT_EXTREMES, len(rows) // 2, False))
        for _, rows in found[:most]
    ]


def disagreements(scores: Scores, agreements: list[Agreement]) -> list[Disagreement]:
    """Of the pairs of scorers that agree least, the images whose places differ most."""
    from scipy.stats import rankdata

    found = []
    for agreement in agreements[:MOST_PAIRS]:
        pair = scores.scores_N_S[:, list(agreement.scorers)]
        both = np.isfinite(pair).all(1)
        above = np.full(pair.shape, np.nan)
        above[both] = (rankdata(pair[both], axis=0) - 1) / max(1, both.sum() - 1)
        difference = above[:, 0] - above[:, 1]
        rows = np.flatnonzero(both)
        down = rows[np.argsort(-difference[rows], kind="stable")]
        up = rows[np.argsort(difference[rows], kind="stable")]
        found.append(
            Disagreement(
                agreement.scorers,
                _once_a_prompt(down[difference[down] > 0], scores, DISAGREEMENTS),
                _once_a_prompt(up[difference[up] < 0], scores, DISAGREEMENTS),
                above,
            )
        )
    return found


def _ends(rows: np.ndarray, scores: Scores, by: int, most: int, half: int, spread: bool = True) -> Ends:
    values = scores.scores_N_S[rows, by]
    count = max(1, min(most, half))
    down, up = rows[np.argsort(-values, kind="stable")], rows[np.argsort(values, kind="stable")]
    if not spread:
        return Ends(down[:count].tolist(), up[:count].tolist())
    # Both halves apart: an image is never among the best and the worst.
    middle = max(1, half)
    best = _once_a_prompt(down[:middle], scores, count)
    return Ends(best, [row for row in _once_a_prompt(up[:middle], scores, count) if row not in best])


def _once_a_prompt(rows: np.ndarray, scores: Scores, most: int) -> list[int]:
    """The first rows, at most one of a prompt; further ones of the same prompts only if these are too few."""
    seen: set[int] = set()
    first: list[int] = []
    again: list[int] = []
    for row in rows.tolist():
        prompt = int(scores.prompt_N[row])
        (again if prompt in seen else first).append(row)
        if prompt >= 0:
            seen.add(prompt)
        if len(first) == most:
            return first
    return (first + again)[:most]
