"""Selects the images that a report shows: best, worst, and those on which scorers disagree."""

from dataclasses import dataclass

import numpy as np

from imagereward.report.figures import ScorerCorrelation, by_prompt
from imagereward.report.scores import Scores

EXTREMES = 6  # best images of all, and as many worst ones
PROMPT_EXTREMES = 3  # best images of a prompt, and as many worst ones
DISAGREEMENTS = 4  # images that the first of two scorers prefers, and as many that the second does
MOST_PAIRS = 3  # pairs of scorers whose disagreements are shown


@dataclass(frozen=True)
class Ends:
    """Row numbers of the best and the worst images, the most extreme first; ties in order of rows."""

    best: list[int]
    worst: list[int]


@dataclass(frozen=True)
class Disagreement:
    """Rows that one of two scorers ranks high and the other low.

    first_high   rows that the first scorer ranks higher than the second, the largest difference first
    second_high  the reverse
    above_N_2    share in [0, 1] of images that each scorer ranks below the row's; NaN without both scores
    """

    scorers: tuple[int, int]
    first_high: list[int]
    second_high: list[int]
    above_N_2: np.ndarray


def overall(scores: Scores, by: int) -> Ends:
    """The best and the worst of all images by scorer `by`, of different prompts where there are enough."""
    rows = np.flatnonzero(np.isfinite(scores.scores_N_S[:, by]))
    return _ends(rows, scores, by, EXTREMES, len(rows) // 2)


def prompts_to_show(scores: Scores, by: int, most: int) -> list[tuple[int, Ends]]:
    """(prompt index, its best and worst images) of the `most` prompts with the widest range of scores."""
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


def disagreements(scores: Scores, agreements: list[ScorerCorrelation]) -> list[Disagreement]:
    """For the `MOST_PAIRS` pairs of scorers with the lowest correlation, the images ranked most differently.

    agreements   the lowest correlation first, as `figures.agreements` returns them
    """
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
        best = down[:count].tolist()  # of equal scores, no image is in both
        return Ends(best, [row for row in up.tolist() if row not in best][:count])
    # Best images come from the upper half and worst from the lower: no image is in both.
    middle = max(1, half)
    best = _once_a_prompt(down[:middle], scores, count)
    return Ends(best, [row for row in _once_a_prompt(up[:middle], scores, count) if row not in best])


def _once_a_prompt(rows: np.ndarray, scores: Scores, most: int) -> list[int]:
    """The first `most` rows of different prompts, filled up with further rows if these are too few."""
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
