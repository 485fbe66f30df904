"""Agreement with human rankings: hand-worked numbers, brute force, and the benchmark that uses them."""

import json
import math
import subprocess
import sys
from itertools import pairwise, permutations
from statistics import fmean

import numpy as np
import pytest
from conftest import pictures, small_scorer
from scipy import stats

from benchmarks.scoring import preference
from imagereward.agreement import metrics
from imagereward.errors import InputError

# Two prompts. The first has 4 unequal pairs, (0,1) (0,2) (3,1) (3,2), and ties (0,3) (1,2); the model
# orders (0,1) (0,2) (3,2) as people do and ties (3,1). The second has 3 pairs: (0,1) right, (0,2) right,
# (1,2) wrong.
SCORES = [[0.9, 0.2, 0.1, 0.2], [3.0, 1.0, 2.0]]
RANKINGS = [[1, 2, 2, 1], [1, 2, 3]]
STATISTICS = {
    "pair_accuracy": metrics.pair_accuracy,
    "prompt_accuracy": metrics.prompt_accuracy,
    "recall_at": lambda scores, rankings: metrics.recall_at(scores, rankings, 1),
    "filter_at": lambda scores, rankings: metrics.filter_at(scores, rankings, 1),
    "spearman": metrics.spearman,
    "kendall": metrics.kendall,
    "interval": lambda scores, rankings: metrics.interval(metrics.pair_accuracy, scores, rankings),
    "summarise": metrics.summarise,
}


def drawn(prompts: int, seed: int = 0) -> tuple[list[list[float]], list[list[int]]]:
    """Random scores, some tied, and random rankings with ties, of 4 to 9 images each."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(4, 10, prompts)
    rankings = [[1, 2, *rng.integers(1, 6, count - 2).tolist()] for count in counts]
    return [rng.normal(size=count).round(1).tolist() for count in counts], rankings


def negated(rows):
    return [[-value for value in row] for row in rows]


def test_pairs_name_the_better_image_first_and_leave_ties_out():
    assert metrics.pairs_of([2, 1, 2, 5]) == [(1, 0), (0, 3), (1, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize("ranking", [[], [1], [3, 3, 3]])
def test_a_ranking_without_unequal_ranks_has_no_pairs(ranking):
    assert metrics.pairs_of(ranking) == []


def test_pairs_of_refuses_a_rank_that_is_nan():
    with pytest.raises(InputError, match=r"ranking\[1\] is nan"):
        metrics.pairs_of([1, math.nan])


def test_pair_accuracy_pools_pairs_over_prompts_and_counts_a_model_tie_as_wrong():
    assert metrics.pair_accuracy(SCORES, RANKINGS) == 5 / 7


def test_prompt_accuracy_weighs_every_prompt_the_same():
    assert metrics.prompt_accuracy(SCORES, RANKINGS) == pytest.approx((3 / 4 + 2 / 3) / 2)


def test_prompt_accuracy_is_kendalls_tau_moved_to_0_1_when_nothing_is_tied():
    rng = np.random.default_rng(1)
    scores = [rng.normal(size=6).tolist() for _ in range(20)]
    rankings = [rng.permutation(6).tolist() for _ in range(20)]
    taus = [stats.kendalltau(row, ranking).statistic for row, ranking in zip(scores, rankings)]
    assert metrics.prompt_accuracy(scores, rankings) == pytest.approx((1 - fmean(taus)) / 2)


def test_prompts_that_people_tied_throughout_change_no_figure():
    more = [*SCORES, [5.0, 1.0], [2.0]], [*RANKINGS, [4, 4], [1]]
    for name in STATISTICS.keys() - {"interval", "summarise"}:
        assert STATISTICS[name](*more) == STATISTICS[name](SCORES, RANKINGS)


def test_recall_finds_the_best_image_among_the_top_k():
    scores, rankings = [[4, 3, 2, 1], [4, 3, 2, 1], [4, 3, 2, 1]], [[1, 2, 3, 4], [2, 1, 3, 4], [3, 2, 4, 1]]
    assert [metrics.recall_at(scores, rankings, k) for k in (1, 2, 3, 4)] == [1 / 3, 2 / 3, 2 / 3, 1]


def test_filter_finds_the_worst_image_among_the_bottom_k():
    scores, rankings = [[4, 3, 2, 1], [4, 3, 2, 1], [4, 3, 2, 1]], [[1, 2, 3, 4], [2, 1, 4, 3], [4, 2, 3, 1]]
    assert [metrics.filter_at(scores, rankings, k) for k in (1, 2, 3, 4)] == [1 / 3, 2 / 3, 2 / 3, 1]


def test_one_of_several_best_images_is_enough_for_recall():
    assert metrics.recall_at([[1, 2, 9]], [[1, 2, 1]], 1) == 1


@pytest.mark.parametrize("k", [1, 2, 4])
def test_recall_equals_the_worst_of_all_orders_that_the_scores_allow(k):
    scores, rankings = drawn(30)
    scores, rankings = [row[:5] for row in scores], [row[:5] for row in rankings]

    def hit(row, ranking) -> bool:
        orders = [
            order
            for order in permutations(range(len(row)))
            if all(row[i] >= row[j] for i, j in pairwise(order))
        ]
        return all(min(ranking) in [ranking[index] for index in order[:k]] for order in orders)

    expected = fmean(hit(row, ranking) for row, ranking in zip(scores, rankings))
    assert metrics.recall_at(scores, rankings, k) == pytest.approx(expected)
    lows, highs = negated(scores), negated(rankings)
    assert metrics.filter_at(lows, highs, k) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_chance_is_the_average_over_all_orders(k):
    rankings = [[1, 1, 2, 3], [2, 1, 3], [1, 2, 3, 3, 3]]

    def average(metric) -> float:
        return fmean(
            fmean(metric([order], [ranking], k) for order in permutations(range(len(ranking))))
            for ranking in rankings
        )

    assert metrics.recall_by_chance(rankings, k) == pytest.approx(average(metrics.recall_at))
    assert metrics.filter_by_chance(rankings, k) == pytest.approx(average(metrics.filter_at))


def test_spearman_and_kendall_are_what_they_are_by_hand():
    # Rank differences 0, -1, 1: rho = 1 - 6 * 2 / (3 * 8). Two pairs concordant, one not: tau = 1 / 3.
    assert metrics.spearman([[3, 1, 2]], [[1, 2, 3]]) == pytest.approx(0.5)
    assert metrics.kendall([[3, 1, 2]], [[1, 2, 3]]) == pytest.approx(1 / 3)


def test_kendall_is_the_variant_that_corrects_for_ties():
    # Two concordant pairs, of 3 untied in the scores and 2 in the ranking.
    assert metrics.kendall([[3, 2, 1]], [[1, 1, 2]]) == pytest.approx(2 / math.sqrt(3 * 2))


@pytest.mark.parametrize("correlation", [metrics.spearman, metrics.kendall])
def test_correlations_average_over_prompts_whose_scores_differ(correlation):
    scores, rankings = [[3, 2, 1], [1, 2, 3], [5, 5, 5]], [[1, 2, 3], [1, 2, 3], [1, 2, 3]]
    assert correlation(scores[:1], rankings[:1]) == pytest.approx(1)
    assert correlation(scores, rankings) == pytest.approx(0)


@pytest.mark.filterwarnings("error")
def test_a_collapsed_model_gets_accuracy_zero_and_no_correlation():
    result = metrics.summarise([[0.5] * 4, [0.5] * 3], RANKINGS)
    assert (result.pair_accuracy, result.prompt_accuracy, result.recall[1], result.filter[1]) == (0, 0, 0, 0)
    assert math.isnan(result.spearman)
    assert math.isnan(result.kendall)
    assert (result.model_ties, result.pairs) == (7, 7)


@pytest.mark.parametrize(("sign", "accuracy", "correlation"), [(-1, 1, 1), (1, 0, -1)])
def test_perfect_scores_get_everything_right_and_reversed_ones_nothing(sign, accuracy, correlation):
    _, rankings = drawn(40)
    result = metrics.summarise([[sign * rank for rank in ranking] for ranking in rankings], rankings)
    assert result.pair_accuracy == result.prompt_accuracy == accuracy
    assert result.recall[1] == result.filter[1] == accuracy
    low, high = result.accuracy_interval
    assert accuracy in (low, high)
    assert 0.05 < high - low < 0.1
    assert result.spearman == pytest.approx(correlation)
    assert result.kendall == pytest.approx(correlation)


def test_random_scores_are_right_as_often_as_chance_says():
    _, rankings = drawn(2000)
    rng = np.random.default_rng(2)
    result = metrics.summarise([rng.normal(size=len(row)).tolist() for row in rankings], rankings, level=None)
    assert result.pair_accuracy == pytest.approx(0.5, abs=0.02)
    assert result.spearman == pytest.approx(0, abs=0.05)
    for k in (1, 2, 4):
        assert result.recall[k] == pytest.approx(metrics.recall_by_chance(rankings, k), abs=0.03)
        assert result.filter[k] == pytest.approx(metrics.filter_by_chance(rankings, k), abs=0.03)


def test_the_interval_of_a_correlation_is_of_the_prompts_that_have_one():
    scores = [[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], *[[0.5, 0.5, 0.5]] * 8]
    rankings = [[1, 2, 3]] * 10
    for statistic in (metrics.spearman, metrics.kendall):
        assert metrics.interval(statistic, scores, rankings) == metrics.interval(
            statistic, scores[:2], rankings[:2]
        )
        assert all(map(math.isnan, metrics.interval(statistic, scores[1:], rankings[1:])))


def test_no_figure_depends_on_the_scale_of_scores():
    scores, rankings = drawn(10)
    scaled = [[100 * score - 7 for score in row] for row in scores]
    assert metrics.summarise(scaled, rankings) == metrics.summarise(scores, rankings)


def test_the_interval_of_two_prompts_is_what_it_is_by_hand():
    # Accuracies 1 and 0, and the bounds 0 and 1: mean 1/2, deviation sqrt(1/3), standard error sqrt(1/12),
    # and the 75 % quantile of t with 3 degrees is 0.7649.
    low, high = metrics.interval(metrics.pair_accuracy, [[2, 1], [1, 2]], [[1, 2], [1, 2]], level=0.5)
    half = 0.7649 * math.sqrt(1 / 12)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)


def test_the_interval_leaves_out_prompts_and_not_pairs():
    # All 10 pairs of a prompt are right or all are wrong: 20 prompts, not 200 pairs, make the width.
    scores, rankings = [[5, 4, 3, 2, 1], [1, 2, 3, 4, 5]] * 10, [[1, 2, 3, 4, 5]] * 20
    low, high = metrics.interval(metrics.pair_accuracy, scores, rankings)
    assert high - low == pytest.approx(2 * 2.080 * math.sqrt(0.25 / 21), abs=1e-3)


def test_the_interval_is_near_that_of_scipys_bootstrap_where_prompts_are_many():
    scores, rankings = drawn(200)
    shares = [metrics.prompt_accuracy([row], [ranking]) for row, ranking in zip(scores, rankings)]
    theirs = stats.bootstrap((shares,), np.mean, method="percentile", n_resamples=2000, confidence_level=0.9)
    ours = metrics.interval(metrics.prompt_accuracy, scores, rankings, level=0.9)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.004)


@pytest.mark.parametrize("count", [1, 2])
def test_tied_prompts_are_no_prompts(count):
    tied, right = [[1, 1]] * 9, [[2, 1]] * count
    found = metrics.interval(metrics.pair_accuracy, [*right, *tied], [*[[1, 2]] * count, *tied])
    assert all(map(math.isnan, found)) if count == 1 else found == (0, 1)


def test_two_prompts_that_agree_prove_nothing():
    result = metrics.summarise([[2, 1], [2, 1]], [[1, 2], [1, 2]])
    assert result.pair_accuracy == 1
    assert result.accuracy_interval == (0, 1)


def test_a_correlation_is_bounded_by_minus_one_and_a_share_by_zero():
    scores, rankings = [[1, 2, 3], [1, 3, 2]] * 3, [[1, 2, 3]] * 6
    low, high = metrics.interval(metrics.kendall, scores, rankings)
    assert low == -1
    assert high < 0.1
    with pytest.raises(InputError, match=r"estimate -0.6.* is outside its bounds 0 to 1: .*bounds="):
        metrics.interval(lambda *given: metrics.kendall(*given), scores, rankings)
    again = metrics.interval(lambda *given: metrics.kendall(*given), scores, rankings, bounds=(-1, 1))
    assert again == (low, high)


def test_the_summary_counts_what_its_figures_rest_on():
    result = metrics.summarise([*SCORES, [1.0, 2.0]], [*RANKINGS, [3, 3]], ks=(1, 3), level=None)
    assert (result.prompts, result.tied_prompts) == (3, 1)
    assert (result.pairs, result.ties, result.model_ties) == (7, 3, 1)
    assert result.recall.keys() == result.filter.keys() == {1, 3}
    assert result.accuracy_interval is None


def test_the_summary_repeats_the_single_figures():
    result = metrics.summarise(SCORES, RANKINGS, level=0.8)
    assert result.pair_accuracy == metrics.pair_accuracy(SCORES, RANKINGS)
    assert result.prompt_accuracy == metrics.prompt_accuracy(SCORES, RANKINGS)
    assert result.spearman == metrics.spearman(SCORES, RANKINGS)
    assert result.kendall == metrics.kendall(SCORES, RANKINGS)
    assert result.recall == {k: metrics.recall_at(SCORES, RANKINGS, k) for k in (1, 2, 4)}
    assert result.filter == {k: metrics.filter_at(SCORES, RANKINGS, k) for k in (1, 2, 4)}
    low, high = metrics.interval(metrics.pair_accuracy, SCORES, RANKINGS, level=0.8)
    assert result.accuracy_interval == pytest.approx((low, high))


def test_arrays_and_tensors_are_taken_as_they_come():
    import torch

    scores, rankings = np.array([[3.0, 1.0, 2.0]]), torch.tensor([[1, 2, 3]])
    assert metrics.pair_accuracy(scores, rankings) == metrics.pair_accuracy(SCORES[1:], RANKINGS[1:])


@pytest.mark.parametrize(
    ("scores", "rankings", "message"),
    [
        (SCORES, RANKINGS[:1], "scores of 2 prompts and rankings of 1"),
        ([], [], "scores and rankings are empty"),
        ([[2, 1], [3, 2, 1]], [[1, 2], [1, 2]], r"scores\[1\] has 3 images, rankings\[1\] 2"),
        ([[2, 1], []], [[1, 2], []], r"scores\[1\] is empty"),
        ([[2, 1], [1, math.nan]], [[1, 2], [1, 2]], r"scores\[1\]\[1\] is nan"),
        ([[2, math.inf]], [[1, 2]], r"scores\[0\]\[1\] is inf"),
        ([[2, 1]], [[1, math.nan]], r"rankings\[0\]\[1\] is nan"),
        ([2, 1], [1, 2], r"scores\[0\]: expected a list of numbers"),
        ([[2, None]], [[1, 2]], r"scores\[0\]: expected a list of numbers"),
        ([[2, 1]], [["1", "2"]], r"rankings\[0\]: expected a list of numbers"),
        ([[2, 1], [2, 1]], [[1, 1], [3, 3]], "rankings hold only ties in all 2 prompts"),
    ],
)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_bad_input_is_refused_by_every_function_naming_the_prompt(statistic, scores, rankings, message):
    with pytest.raises(InputError, match=message):
        STATISTICS[statistic](scores, rankings)


def test_messages_name_a_prompts_id_where_there_is_one():
    with pytest.raises(InputError, match=r"scores\[1\] \(id '005658-0040'\)\[1\] is nan"):
        metrics.summarise([[2, 1], [1, math.nan]], [[1, 2], [1, 2]], ids=["000904-0035", "005658-0040"])


def test_as_many_ids_as_prompts_are_asked_for():
    with pytest.raises(InputError, match="1 ids for 2 prompts"):
        metrics.summarise(SCORES, RANKINGS, ids=["one"])


@pytest.mark.parametrize("k", [0, -1, 1.5, True, None])
def test_a_k_below_one_is_refused(k):
    for call in (
        lambda: metrics.recall_at(SCORES, RANKINGS, k),
        lambda: metrics.filter_at(SCORES, RANKINGS, k),
        lambda: metrics.recall_by_chance(RANKINGS, k),
        lambda: metrics.filter_by_chance(RANKINGS, k),
        lambda: metrics.summarise(SCORES, RANKINGS, ks=[k]),
    ):
        with pytest.raises(InputError, match=f"k={k!r}: expected a whole number of at least 1"):
            call()


@pytest.mark.parametrize("level", [0, 1, math.nan])
def test_an_interval_of_an_impossible_level_is_refused(level):
    for call in (
        lambda: metrics.interval(metrics.pair_accuracy, SCORES, RANKINGS, level),
        lambda: metrics.summarise(SCORES, RANKINGS, level=level),
    ):
        with pytest.raises(InputError, match=f"level={level}"):
            call()


def test_importing_the_module_loads_neither_torch_nor_scipy():
    code = "import sys, imagereward.agreement.metrics; print({'torch', 'scipy'} & {*sys.modules} or [])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.fixture
def ranked(tmp_path):
    """A rankings file, with its images in `pictures/` beside it."""
    (tmp_path / "pictures").mkdir()
    for index, picture in enumerate(pictures(7)):
        picture.save(tmp_path / "pictures" / f"{index}.png")
    names = [f"pictures/{index}.png" for index in range(7)]
    entries = [
        {"id": "a", "prompt": "a red bicycle", "generations": names[:4], "ranking": [2, 1, 3, 1]},
        {"id": "b", "prompt": "two cats", "generations": names[4:], "ranking": [1, 2, 3]},
    ]
    path = tmp_path / "test.json"
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture
def saved(tmp_path):
    return {
        kind: str(small_scorer(kind).save_pretrained(tmp_path / kind)) for kind in ("ImageReward", "BLIP")
    }


def benchmark(ranked, *options, out) -> dict:
    preference.main(
        [str(ranked), "--device", "cpu", "--allow-changes", "--out", str(out), *map(str, options)]
    )
    return json.loads(out.read_text())


def test_the_benchmark_prints_and_writes_a_row_for_every_model(ranked, saved, tmp_path, capsys):
    out = tmp_path / "results.json"
    models = [option for path in saved.values() for option in ("--model", path)]
    result = benchmark(ranked, *models, out=out)
    printed = capsys.readouterr().out
    heads = "model, pair accuracy, low, high, recall@1, recall@2, recall@4, filter@1, filter@2, filter@4"
    assert all(head in printed.splitlines()[0] for head in heads.split(", "))
    assert [row["model"] for row in result["models"]] == list(saved.values())
    assert (result["prompts"], result["images"], result["missing"]) == (2, 7, 0)
    for kind, row in zip(saved, result["models"]):
        scorer = small_scorer(kind)
        folder = ranked.parent / "pictures"
        scores = [
            scorer.score("a red bicycle", [str(folder / f"{index}.png") for index in range(4)]),
            scorer.score("two cats", [str(folder / f"{index}.png") for index in range(4, 7)]),
        ]
        expected = metrics.summarise(scores, [[2, 1, 3, 1], [1, 2, 3]])
        assert row["pair accuracy"] == pytest.approx(expected.pair_accuracy, rel=1e-3)
        assert (row["low"], row["high"]) == pytest.approx(expected.accuracy_interval, rel=1e-3)
        assert row["recall@1"] == pytest.approx(expected.recall[1], rel=1e-3)
        assert row["filter@2"] == pytest.approx(expected.filter[2], rel=1e-3)
        assert row["kendall"] == pytest.approx(expected.kendall, rel=1e-3)
        assert f"{expected.pair_accuracy:.4f}" in printed
        assert (row["pairs"], row["ties"]) == (8, 1)


def test_the_benchmark_looks_for_images_in_the_folder_it_is_told(ranked, saved, tmp_path):
    beside = benchmark(ranked, "--model", saved["BLIP"], out=tmp_path / "beside.json")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "pictures").rename(moved / "pictures")
    told = benchmark(ranked, "--model", saved["BLIP"], "--images", moved, out=tmp_path / "told.json")
    assert told["models"] == beside["models"]


def test_the_benchmark_names_missing_images_before_it_loads_a_model(ranked, tmp_path, capsys):
    (tmp_path / "pictures" / "1.png").unlink()
    with pytest.raises(SystemExit, match=r"1 of 7 images are missing: .*1\.png.*--allow-missing"):
        preference.main([str(ranked), "--model", "no such model"])


def test_the_benchmark_goes_on_without_missing_images_when_allowed(ranked, saved, tmp_path, capsys):
    for name in ("2.png", "4.png", "5.png"):
        (tmp_path / "pictures" / name).unlink()
    out = tmp_path / "results.json"
    result = benchmark(ranked, "--model", saved["BLIP"], "--allow-missing", out=out)
    assert "3 images are missing and left out" in capsys.readouterr().err
    assert (result["prompts"], result["images"], result["missing"]) == (1, 3, 3)
    assert (result["models"][0]["pairs"], result["models"][0]["ties"]) == (2, 1)


def test_the_benchmark_refuses_a_folder_without_any_image(ranked, tmp_path):
    with pytest.raises(SystemExit, match="no prompt has two images"):
        preference.main([str(ranked), "--images", str(tmp_path / "pictures"), "--allow-missing"])
