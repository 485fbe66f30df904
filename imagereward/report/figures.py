"""Computes the figures of a report: distributions, means, win rates and rank correlations, with intervals.

Axes: N rows, S scorers, G generators, P prompts, K quantities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from imagereward.agreement import metrics
from imagereward.agreement.intervals import FEW, SHARE, Bounds, ratio_interval
from imagereward.report.scores import Scores
from imagereward.scoring.ranking import ranks_of

LEVEL = 0.95  # of all intervals
# Generators in charts and win matrices: those with most rows.
MOST_GENERATORS = 8
MOST_BINS, FEWEST_BINS = 48, 10
# Prompts within which two scorers' rankings are compared, evenly spread over all prompts.
MOST_COMPARED = 500


@dataclass(frozen=True)
class Interval:
    """The mean of `count` values and its 95 % interval; low and high are NaN for a single prompt."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def may_be_chance(self) -> bool:
        """Of a win rate over `count` prompts: whether they are fewer than 16 or the interval contains 1/2."""
        return self.count < FEW or not (self.low > 0.5 or self.high < 0.5)


@dataclass(frozen=True)
class Spread:
    """One generator's scores: their mean, and counts in equal bins over the scorer's range."""

    generator: int
    mean: Interval
    histogram: list[int]


@dataclass(frozen=True)
class ScorerFigures:
    """The figures of one scorer.

    scorer     its index in `Scores.scorers`
    low, high  its lowest and highest score
    spreads    a distribution for each generator, the highest mean first
    wins       wins[a, b] is the chance that an image of generator a scores above one of b for the same
               prompt, averaged over prompts with images of both
    """

    scorer: int
    low: float
    high: float
    spreads: list[Spread]
    wins: dict[tuple[int, int], Interval]


@dataclass(frozen=True)
class ScorerCorrelation:
    """Rank correlations of two scorers over the images that both scored, in [-1, 1].

    within   (Spearman, Kendall, number of prompts): means over prompts with several images; None if no prompt
             has several
    """

    scorers: tuple[int, int]
    images: int
    spearman: float
    kendall: float
    within: tuple[float, float, int] | None


def shown_generators(scores: Scores) -> list[int]:
    """Indices of the `MOST_GENERATORS` generators with most rows, in order of their first row."""
    counts = np.bincount(scores.generator_N, minlength=len(scores.generators))
    return sorted(np.argsort(-counts, kind="stable")[:MOST_GENERATORS].tolist())


def judged_by(scores: Scores, scorer: int) -> ScorerFigures:
    """The figures of one scorer. Intervals are over prompts, or over images if there is one prompt."""
    values, shown = scores.scores_N_S[:, scorer], shown_generators(scores)
    several = len(scores.prompts) > 1
    # A row without a prompt forms its own cluster.
    cluster = np.where(scores.prompt_N < 0, np.arange(len(scores)) + len(scores.prompts), scores.prompt_N)
    cluster = np.unique(cluster if several else np.arange(len(scores)), return_inverse=True)[1]
    count = int(cluster.max()) + 1
    pairs = list(combinations(shown, 2)) if several else []
    sums = np.zeros((count, len(shown) + len(pairs)))
    counts = np.zeros_like(sums)
    for place, generator in enumerate(shown):
        own = (scores.generator_N == generator) & np.isfinite(values)
        sums[:, place] = np.bincount(cluster[own], values[own], count)
        counts[:, place] = np.bincount(cluster[own], minlength=count)
    for place, (a, b) in enumerate(pairs, len(shown)):
        shares = win_shares(scores.prompt_N, values, scores.generator_N == a, scores.generator_N == b)
        both = np.isfinite(shares)
        sums[: len(shares), place][both] = shares[both]
        counts[: len(shares), place] = both
    bounds = [None] * len(shown) + [SHARE] * len(pairs)
    intervals = mean_intervals(sums, counts, bounds)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    most = max(interval.count for interval in intervals[: len(shown)])
    bins = int(min(MOST_BINS, max(FEWEST_BINS, 2 * most**0.5)))
    spreads = [
        Spread(generator, interval, _histogram(values[scores.generator_N == generator], low, high, bins))
        for generator, interval in zip(shown, intervals)
        if interval.count
    ]
    wins = {}
    for (a, b), interval in zip(pairs, intervals[len(shown) :]):
        if interval.count:
            wins[a, b] = interval
            wins[b, a] = Interval(1 - interval.mean, 1 - interval.high, 1 - interval.low, interval.count)
    return ScorerFigures(scorer, low, high, sorted(spreads, key=lambda spread: -spread.mean.mean), wins)


def _histogram(values: np.ndarray, low: float, high: float, bins: int) -> list[int]:
    return np.histogram(values[np.isfinite(values)], bins, (low, high))[0].tolist()


def mean_intervals(
    sums_P_K: np.ndarray, counts_P_K: np.ndarray, bounds_K: Sequence[Bounds | None]
) -> list[Interval]:
    """Means of K quantities with t intervals over P clusters such as prompts (`agreement.intervals`).

    sums_P_K    sum of cluster p's values of quantity k
    counts_P_K  number of these values
    bounds_K    smallest and largest possible value of each quantity; None if there are none
    """
    found = []
    for sums, counts, bounds in zip(sums_P_K.T, counts_P_K.T, bounds_K, strict=True):
        mean, low, high = ratio_interval(sums, counts, LEVEL, bounds)
        found.append(Interval(mean, low, high, int(counts.sum())))
    return found


def win_shares(prompt_N: np.ndarray, values_N: np.ndarray, a_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
    """For each prompt, [P]: the chance that an image of a scores above one of b; equal scores count half.

    prompt_N, values_N   prompt index (-1: none) and score (NaN: none) of each row
    a_N, b_N             bool: rows of generator a, of generator b

    U / (n_a n_b), with U of Mann and Whitney (1947) from the midranks within the prompt: O(n log n) in the
    number of images. NaN for a prompt without images of both.
    """
    prompts = int(prompt_N.max(initial=-1)) + 1
    used = np.flatnonzero((a_N | b_N) & np.isfinite(values_N) & (prompt_N >= 0))
    order = used[np.lexsort((values_N[used], prompt_N[used]))]
    prompt, value, of_a = prompt_N[order], values_N[order], a_N[order]
    place = np.arange(len(order))
    new_prompt = np.diff(prompt, prepend=-1) != 0
    new_value = new_prompt | (np.diff(value, prepend=np.nan) != 0)
    run = np.cumsum(new_value) - 1
    in_run = np.bincount(run) if len(run) else run
    first = place[new_value][run] - np.maximum.accumulate(np.where(new_prompt, place, 0))
    midrank = first + (in_run[run] + 1) / 2
    n_a = np.bincount(prompt[of_a], minlength=prompts)
    n_b = np.bincount(prompt[~of_a], minlength=prompts)
    u = np.bincount(prompt[of_a], midrank[of_a], prompts) - n_a * (n_a + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n_a * n_b > 0, u / (n_a * n_b), np.nan)


def agreements(scores: Scores) -> list[ScorerCorrelation]:
    """Correlations of every two scorers with at least two images in common, the lowest Spearman first."""
    from scipy.stats import kendalltau, spearmanr

    found = []
    for a, b in combinations(range(len(scores.scorers)), 2):
        both = np.flatnonzero(np.isfinite(scores.scores_N_S[:, [a, b]]).all(1))
        x, y = scores.scores_N_S[both, a], scores.scores_N_S[both, b]
        if len(both) < 2 or x.min() == x.max() or y.min() == y.max():
            continue  # a constant has no rank correlation
        rho, tau = float(spearmanr(x, y).statistic), float(kendalltau(x, y).statistic)
        within = _within_prompts(scores.prompt_N[both], x, y)
        found.append(ScorerCorrelation((a, b), len(both), rho, tau, within))
    return sorted(found, key=lambda agreement: agreement.spearman)


def _within_prompts(prompt: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, float, int] | None:
    groups = [rows for rows in by_prompt(prompt) if np.ptp(x[rows]) and np.ptp(y[rows])]
    if not groups:
        return None
    chosen = [groups[at] for at in evenly(len(groups), MOST_COMPARED)]
    rows, rankings = [x[each].tolist() for each in chosen], [ranks_of(y[each].tolist()) for each in chosen]
    return metrics.spearman(rows, rankings), metrics.kendall(rows, rankings), len(chosen)


def by_prompt(prompt_N: np.ndarray) -> list[np.ndarray]:
    """The row numbers of each prompt, in order of prompt indices; rows without a prompt are left out."""
    order = np.argsort(prompt_N, kind="stable")
    bounds = np.flatnonzero(np.diff(prompt_N[order])) + 1
    return [rows for rows in np.split(order, bounds) if len(rows) and prompt_N[rows[0]] >= 0]


def evenly(count: int, most: int) -> list[int]:
    """At most `most` numbers of range(count), evenly spread."""
    return [count * at // min(count, most) for at in range(min(count, most))]
