"""Intervals over prompts: against scipy's Student's t, by simulation, and alike wherever there is one."""

import math

import numpy as np
import pytest
from scipy import stats
from test_metrics import drawn

from imagereward.agreement import metrics
from imagereward.agreement.intervals import SHARE, mean_interval, ratio_interval, t_interval
from imagereward.report.figures import mean_intervals
from imagereward.tuning.evaluation.comparison import paired_interval

RUNS = 2000


def scipys(values, level=0.95):
    """Student's t interval of a mean, as scipy has it."""
    return stats.ttest_1samp(values, 0).confidence_interval(level)


@pytest.mark.parametrize("count", [2, 3, 8, 100])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_of_a_mean_is_students(count, level):
    values = np.random.default_rng(count).gamma(2.0, size=count)
    mean, low, high = mean_interval(values, level)
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(tuple(scipys(values, level)))


@pytest.mark.parametrize(
    ("draw", "least"),
    [(lambda rng, n: rng.normal(0.3, 1, n), 0.935), (lambda rng, n: rng.uniform(-1, 1, n) + 0.3, 0.92)],
    ids=["normal", "uniform"],
)
@pytest.mark.parametrize("prompts", [4, 8, 16, 64])
def test_95_percent_are_95_percent_however_few_prompts(prompts, draw, least):
    """Of 2,000 comparisons whose true difference is 0.3; the error of the share is 0.5 %."""
    rng, hits = np.random.default_rng(prompts), 0
    for _ in range(RUNS):
        before = rng.normal(size=prompts)
        low, high = paired_interval(before, before + draw(rng, prompts))
        hits += low <= 0.3 <= high
    assert least < hits / RUNS < 0.965


def test_the_same_resampled_would_cover_too_seldom():
    """What the interval replaces, so that the simulation is known to tell the two apart."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        values = rng.normal(0.3, 1, 4)
        low, high = np.quantile(rng.choice(values, (500, 4)).mean(1), [0.025, 0.975])
        hits += low <= 0.3 <= high
    assert hits / 400 < 0.88


def test_clusters_of_unequal_size_have_the_intervals_of_a_ratio():
    """Against the textbook's linearised variance (Cochran), which the jackknife tends to."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 6, 300)
    sums = counts * rng.normal(1.0, 0.5, 300)
    mean, low, high = ratio_interval(sums, counts)
    assert mean == pytest.approx(sums.sum() / counts.sum())
    residuals = sums - mean * counts
    error = math.sqrt(300 / 299 * (residuals**2).sum()) / counts.sum()
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 299) * error, rel=0.02)


def test_clusters_without_values_take_no_part():
    assert ratio_interval([1, 0, 2, 4], [1, 0, 1, 1]) == ratio_interval([1, 2, 4], [1, 1, 1])


@pytest.mark.parametrize("values", [[0.7], [0.0]])
def test_one_prompt_has_a_mean_and_no_interval(values):
    mean, low, high = mean_interval(values)
    assert mean == values[0]
    assert math.isnan(low)
    assert math.isnan(high)
    assert all(map(math.isnan, paired_interval(np.zeros(1), np.array(values))))
    assert all(map(math.isnan, t_interval(1.0, [1.0])))


def test_an_interval_with_bounds_holds_the_estimate_at_any_level():
    low, high = t_interval(1.0, [1.0] * 10, level=0.5, bounds=SHARE)
    assert low < high == 1
    assert t_interval(0.0, [0.0] * 10, level=0.5, bounds=SHARE)[0] == 0


def test_nothing_has_neither():
    assert all(map(math.isnan, ratio_interval([0.0], [0])))


def test_bounded_values_have_the_interval_of_them_and_of_both_bounds():
    """Of the plain mean, Student's interval of the values and one at each bound, cut to the bounds."""
    values = np.random.default_rng(0).random(12)
    mean, *found = mean_interval(values, 0.9, SHARE)
    assert mean == pytest.approx(values.mean())
    assert found == pytest.approx(tuple(scipys([*values, 0, 1], 0.9)))
    gains = 2 * values - 1
    assert mean_interval(gains, bounds=(-1, 1))[1:] == pytest.approx(tuple(scipys([*gains, -1, 1])))
    assert mean_interval([1, 1, 0, 1], bounds=SHARE)[2] == 1.0
    assert mean_interval([1, 1, 0, 1])[2] > 1.0


def test_shares_that_all_agree_have_an_interval_with_a_width():
    assert mean_interval([1.0, 1.0], bounds=SHARE) == (1.0, 0.0, 1.0)
    mean, low, high = mean_interval([1.0] * 30, bounds=SHARE)
    assert (mean, high) == (1.0, 1.0)
    assert 0.85 < low < 0.92


@pytest.mark.parametrize("groups", [5, 10, 20])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95, 1.0])
def test_95_percent_of_shares_are_at_least_93_percent(groups, share):
    """The exact coverage, over the numbers of groups that may be right."""
    covers = 0.0
    for right in range(groups + 1):
        _, low, high = mean_interval(np.arange(groups) < right, bounds=SHARE)
        covers += stats.binom.pmf(right, groups, share) * (low <= share <= high)
    assert covers > 0.93
    assert covers > 0.99 or share < 0.95  # plainly: 0.43 at 10 groups and 0.95


@pytest.mark.parametrize("groups", [5, 10, 20])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.8, 0.5), (0.95, 0.5), (1.0, 0.8), (0.95, 0.95)])
def test_95_percent_of_differences_of_shares_are_at_least_93_percent(groups, shares):
    rng, hits, runs = np.random.default_rng(groups), 0, 300
    for _ in range(runs):
        after, before = (rng.random(groups) < share for share in shares)
        _, low, high = mean_interval(after.astype(float) - before, bounds=(-1.0, 1.0))
        hits += low <= shares[0] - shares[1] <= high
    assert hits / runs > 0.93


def test_reports_metrics_and_comparisons_have_one_interval():
    rng = np.random.default_rng(1)
    values = rng.normal(size=9)
    (of_report,) = mean_intervals(values[:, None], np.ones((9, 1)), [None])
    of_compare = paired_interval(np.zeros(9), values)
    assert (of_report.low, of_report.high) == pytest.approx(of_compare)
    assert of_compare == pytest.approx(tuple(scipys(values)))
    scores, rankings = drawn(40)
    shares = [metrics.prompt_accuracy([row], [ranking]) for row, ranking in zip(scores, rankings)]
    of_metrics = metrics.interval(metrics.prompt_accuracy, scores, rankings)
    assert of_metrics == pytest.approx(tuple(scipys([*shares, 0, 1])))
