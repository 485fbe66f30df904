"""Metrics of agreement between scores and human rankings: pair accuracy, recall@k, filter@k, correlations.

`scores[p][i]` is a model's score of prompt p's image i, higher is better; `rankings[p][i]` is the human
rank of that image, lower is better, ties allowed. Prompts may have different numbers of images. Prompts
with one image, or whose images all have the same rank, are left out of every metric. A tie of the *model*
counts against the model, except in the correlations.

Every function that takes `scores` raises InputError, naming the prompt, for no prompts, unequal
lengths, a prompt without images, a value that is no finite number, and rankings that are all ties.

Definitions follow Xu et al. 2023, arXiv:2304.05977, and the code published with it; docstrings name what
had to be inferred.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from imagereward.agreement.intervals import SHARE, Bounds, ratio_interval, t_interval
from imagereward.errors import InputError

Rows = Sequence[Sequence[float]]
Statistic = Callable[[Rows, Rows], float]


def pairs_of(ranking: Sequence[float]) -> list[tuple[int, int]]:
    """(better, worse) image indices of one prompt, for every i < j of unequal rank, ordered by (i, j).

    Raises InputError for a rank that is no finite number.
    """
    ranks = _finite("ranking", ranking)
    return [
        (i, j) if ranks[i] < ranks[j] else (j, i)
        for i, j in combinations(range(len(ranks)), 2)
        if ranks[i] != ranks[j]
    ]


def pair_accuracy(scores: Rows, rankings: Rows) -> float:
    """Share of pairs, in [0, 1], whose better image scores strictly higher; pairs pooled over prompts.

    Pairs that people tied are skipped; a tie of the model is wrong. The published test script computes this
    value, which Table 3 calls preference accuracy (its caption says "averaged per prompt", which would be
    `prompt_accuracy`).
    """
    right, pairs = zip(*(_right_pairs(*prompt) for prompt in _with_preference(scores, rankings)))
    return sum(right) / sum(pairs)


def prompt_accuracy(scores: Rows, rankings: Rows) -> float:
    """Mean over prompts of each prompt's `pair_accuracy`, in [0, 1]."""
    counts = [_right_pairs(*prompt) for prompt in _with_preference(scores, rankings)]
    return fmean(right / pairs for right, pairs in counts)


def recall_at(scores: Rows, rankings: Rows, k: int) -> float:
    """Share of prompts, in [0, 1], with a human-best image among the model's top k.

    A prompt of k or fewer images always counts as a hit, and with several human-best images one is
    enough, so compare with `recall_by_chance`, and only between figures from the same prompts.

    The published figures cannot be reproduced: their test set of 371 prompts with 8 images each is lost
    (github.com/zai-org/ImageReward/issues/78), and no code for them was published. That one human-best image
    is enough is inferred: all figures are multiples of 1/371, and the recall@4 of CLIP, 78 %, is chance for
    two best images of 8, while chance for one is 50 %. How ties were broken is unknown.

    Raises InputError also for k < 1.
    """
    _check_at_least_one("k", k)
    return fmean(_hit(*prompt, k) for prompt in _with_preference(scores, rankings))


def filter_at(scores: Rows, rankings: Rows, k: int) -> float:
    """Share of prompts, in [0, 1], with a human-worst image among the model's bottom k.

    `recall_at` of negated scores and ranks; its remarks apply.
    """
    return recall_at(*_upside_down(scores, rankings), k)


def recall_by_chance(rankings: Rows, k: int) -> float:
    """Expectation of `recall_at`, in [0, 1], for random scores. Raises as `recall_at` does."""
    _check_at_least_one("k", k)
    return fmean(_chance_of_hit(ranking, k) for _, ranking in _with_preference(rankings, rankings))


def filter_by_chance(rankings: Rows, k: int) -> float:
    """Expectation of `filter_at`, in [0, 1], for random scores. Raises as `filter_at` does."""
    return recall_by_chance(_upside_down(rankings, rankings)[1], k)


def spearman(scores: Rows, rankings: Rows) -> float:
    """Spearman's rho between scores and negated ranks, in [-1, 1], averaged over prompts.

    Ties get their mean rank. A prompt whose scores are all equal has no correlation and is left out, in
    favour of models with many ties; NaN if no prompt is left.
    """
    from scipy.stats import spearmanr

    return _mean_correlation(spearmanr, scores, rankings)


def kendall(scores: Rows, rankings: Rows) -> float:
    """Kendall's tau-b between scores and negated ranks, in [-1, 1], averaged over prompts.

    tau-b corrects for ties on both sides. Prompts whose scores are all equal are left out, as in `spearman`.
    """
    from scipy.stats import kendalltau

    return _mean_correlation(kendalltau, scores, rankings)


def interval(
    statistic: Statistic, scores: Rows, rankings: Rows, level: float = 0.95, bounds: Bounds | None = None
) -> tuple[float, float]:
    """(low, high) of `statistic(scores, rankings)`: its confidence interval over prompts.

    bounds   of the statistic; default: (-1, 1) for `spearman` and `kendall`, else (0, 1), as of shares

    The jackknife's t interval (`agreement.intervals`) over whole prompts, whose pairs depend on each other.
    Other annotators are not covered. Prompts with only ties, and for correlations those with equal scores,
    are dropped first. (nan, nan) for one prompt, and if the statistic is NaN without some prompt. Raises
    InputError also for `level` outside (0, 1), and for a statistic outside its bounds.
    """
    _check_level(level)
    prompts = _with_preference(scores, rankings)
    if correlates := statistic in (spearman, kendall):  # which leave out prompts with equal scores
        prompts = [prompt for prompt in prompts if min(prompt[0]) < max(prompt[0])]
    if len(prompts) < 2:
        return math.nan, math.nan
    bounds = bounds or ((-1.0, 1.0) if correlates else SHARE)
    left_out = [prompts[:place] + prompts[place + 1 :] for place in range(len(prompts))]
    estimate, *without = [statistic(*zip(*kept)) for kept in (prompts, *left_out)]
    return t_interval(estimate, without, level, bounds)


@dataclass(frozen=True)
class Agreement:
    """All metrics of a model against human rankings, from `summarise`. Shares are in [0, 1].

    prompts            number of prompts
    tied_prompts       prompts without a pair of unequal rank, which no metric counts
    pairs              pairs of unequal human rank, over which accuracy is computed
    ties               pairs that people tied
    model_ties         those of `pairs` to which the model gave equal scores, counted as wrong
    accuracy_interval  `interval` of `pair_accuracy`; None without a level
    recall, filter     {k: value}
    """

    prompts: int
    tied_prompts: int
    pairs: int
    ties: int
    model_ties: int
    pair_accuracy: float
    accuracy_interval: tuple[float, float] | None
    prompt_accuracy: float
    recall: dict[int, float]
    filter: dict[int, float]
    spearman: float
    kendall: float


def summarise(
    scores: Rows,
    rankings: Rows,
    *,
    ids: Sequence[Any] | None = None,
    ks: Sequence[int] = (1, 2, 4),
    level: float | None = 0.95,
) -> Agreement:
    """All metrics of this module, and the counts behind them.

    ids     names of the prompts in messages
    ks      the k of recall and filter
    level   of the interval, in (0, 1); None leaves the interval out
    """
    prompts = _checked(scores, rankings, ids)
    pairs = [pairs_of(ranking) for _, ranking in prompts]
    count = sum(map(len, pairs))
    return Agreement(
        prompts=len(prompts),
        tied_prompts=pairs.count([]),
        pairs=count,
        ties=sum(math.comb(len(ranking), 2) for _, ranking in prompts) - count,
        model_ties=sum(row[i] == row[j] for (row, _), unequal in zip(prompts, pairs) for i, j in unequal),
        pair_accuracy=pair_accuracy(scores, rankings),
        accuracy_interval=None if level is None else _accuracy_interval(scores, rankings, level),
        prompt_accuracy=prompt_accuracy(scores, rankings),
        recall={k: recall_at(scores, rankings, k) for k in ks},
        filter={k: filter_at(scores, rankings, k) for k in ks},
        spearman=spearman(scores, rankings),
        kendall=kendall(scores, rankings),
    )


def _accuracy_interval(scores: Rows, rankings: Rows, level: float) -> tuple[float, float]:
    """`interval(pair_accuracy, ...)`, computed from each prompt's counts."""
    _check_level(level)
    right, pairs = zip(*(_right_pairs(*prompt) for prompt in _with_preference(scores, rankings)))
    return ratio_interval(right, pairs, level, SHARE)[1:]


def _right_pairs(scores: list[float], ranking: list[float]) -> tuple[int, int]:
    """(number of pairs that the model orders like people, number of pairs) of one prompt."""
    pairs = pairs_of(ranking)
    return sum(scores[better] > scores[worse] for better, worse in pairs), len(pairs)


def _hit(scores: list[float], ranking: list[float], k: int) -> bool:
    """Whether a human-best image is in the top k even when the model's ties are broken against it."""
    best = min(ranking)
    highest = max(score for score, rank in zip(scores, ranking) if rank == best)
    return sum(score >= highest for score, rank in zip(scores, ranking) if rank != best) < k


def _chance_of_hit(ranking: list[float], k: int) -> float:
    """Chance that k images drawn from the prompt's include a best one: 1 - C(others, k) / C(images, k)."""
    drawn = min(k, len(ranking))
    others = len(ranking) - ranking.count(min(ranking))
    return 1 - math.comb(others, drawn) / math.comb(len(ranking), drawn)


def _mean_correlation(correlation: Callable, scores: Rows, rankings: Rows) -> float:
    values = [
        float(correlation(row, [-rank for rank in ranking]).statistic)
        for row, ranking in _with_preference(scores, rankings)
        if min(row) < max(row)
    ]
    return fmean(values) if values else math.nan


def _upside_down(scores: Rows, rankings: Rows) -> tuple[Rows, Rows]:
    """Negated scores and ranks, which make the worst image the best."""
    prompts = _checked(scores, rankings)
    return [[-s for s in row] for row, _ in prompts], [[-rank for rank in ranking] for _, ranking in prompts]


def _with_preference(scores: Rows, rankings: Rows) -> list[tuple[list[float], list[float]]]:
    """The checked prompts whose ranking is not all ties; InputError if there are none."""
    prompts = _checked(scores, rankings)
    kept = [(row, ranking) for row, ranking in prompts if min(ranking) < max(ranking)]
    if not kept:
        raise InputError(
            f"rankings hold only ties in all {len(prompts)} prompts: no pair of images has a preference"
        )
    return kept


def _checked(
    scores: Rows, rankings: Rows, ids: Sequence[Any] | None = None
) -> list[tuple[list[float], list[float]]]:
    """(scores, ranking) of every prompt as lists of finite numbers."""
    if len(scores) != len(rankings):
        raise InputError(
            f"scores of {len(scores)} prompts and rankings of {len(rankings)}; expected one each"
        )
    if not len(scores):
        raise InputError("scores and rankings are empty: expected at least one prompt")
    if ids is not None and len(ids) != len(scores):
        raise InputError(f"{len(ids)} ids for {len(scores)} prompts; expected one each")
    prompts = []
    for index, (row, ranking) in enumerate(zip(scores, rankings)):
        where = f"[{index}]" if ids is None else f"[{index}] (id {ids[index]!r})"
        prompts.append((_finite(f"scores{where}", row), _finite(f"rankings{where}", ranking)))
        counts = [len(values) for values in prompts[-1]]
        if counts[0] != counts[1]:
            raise InputError(
                f"scores{where} has {counts[0]} images, rankings{where} {counts[1]}; expected as many of each"
            )
        if not counts[0]:
            raise InputError(f"scores{where} is empty: expected at least one image")
    return prompts


def _finite(where: str, values: Sequence[float]) -> list[float]:
    """One prompt's values as floats; InputError, naming the first value that is no finite number."""
    try:
        numbers = [float(value) if math.isfinite(value) else math.nan for value in values]
    except TypeError as error:
        raise InputError(f"{where}: expected a list of numbers ({error})") from error
    if any(map(math.isnan, numbers)):
        place = next(place for place, number in enumerate(numbers) if math.isnan(number))
        raise InputError(f"{where}[{place}] is {values[place]}; expected a finite number")
    return numbers


def _check_at_least_one(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name}={value!r}: expected a whole number of at least 1")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"level={level!r}: expected a number between 0 and 1")
