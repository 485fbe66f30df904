"""Credit within groups, against numbers worked out by hand."""

import numpy as np
import pytest
import torch

from imagereward.tuning.rollouts.advantages import (
    AdvantageStd,
    advantages_of_each,
    best_and_worst,
    group_advantages,
    top_mask,
    weighted_sum,
)

NAN = float("nan")
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1])


def rewards(*values):
    return torch.tensor(values)


def test_advantages_by_the_groups_own_deviation():
    found = group_advantages(rewards(1.0, 2, 3, 10, 10, 40), GROUPS, "group")
    # Deviations: sqrt(2/3) and sqrt(200).
    expected = [
        -1 / (0.816497 + 1e-4),
        0,
        1 / (0.816497 + 1e-4),
        -10 / 14.142236,
        -10 / 14.142236,
        20 / 14.142236,
    ]
    assert found.advantages.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.valid.all()


def test_advantages_by_the_deviation_of_all_rewards():
    found = group_advantages(rewards(0.0, 2, 4, 6, 8, 10), GROUPS, "batch")
    # Mean 5, variance (25 + 9 + 1) * 2 / 6.
    spread = (35 / 3) ** 0.5 + 1e-4
    assert found.advantages.tolist() == pytest.approx([-2 / spread, 0, 2 / spread] * 2, rel=1e-5)


@pytest.mark.parametrize("epsilon", [1e-8, 1e-4, 0.1])
@pytest.mark.parametrize(("divisor", "ddof"), [("population", 0), ("sample", 1)])
@pytest.mark.parametrize("spread", ["batch", "group"])
def test_advantages_by_either_deviation_are_numpys(spread, divisor, ddof, epsilon):
    values = np.array([[1.0, 2, 4], [10, 10.5, 9]])
    found = group_advantages(torch.tensor(values.ravel()), GROUPS, AdvantageStd(spread, divisor, epsilon))
    away = values - values.mean(1, keepdims=True)
    std = values.std(ddof=ddof) if spread == "batch" else values.std(1, ddof=ddof, keepdims=True)
    assert found.advantages.tolist() == pytest.approx((away / (std + epsilon)).ravel().tolist(), rel=1e-5)


def test_the_sample_deviation_counts_the_rewards_that_are_there():
    found = group_advantages(rewards(1.0, NAN, 3, 4, 7, 5), GROUPS, AdvantageStd("group", "sample", 1e-8))
    assert found.advantages[2] == pytest.approx(1 / np.std([1, 3], ddof=1))
    total = weighted_sum(
        {"a": rewards(1.0, 2, 6, 4, 7, 5)}, {"a": 1.0}, GROUPS, AdvantageStd("group", "sample", 1e-8)
    )
    assert total[0] == pytest.approx(-2 / np.std([1, 2, 6], ddof=1))


def test_advantages_are_bounded():
    found = group_advantages(
        rewards(0.0, 0, 0, 0, 0, 100), torch.zeros(6, dtype=torch.long), "group", bound=1.5
    )
    assert found.advantages.max() == 1.5


@pytest.mark.parametrize("spread", ["batch", "group"])
def test_a_group_without_a_difference_counts_for_nothing(spread):
    found = group_advantages(rewards(0.7, 0.7, 0.7, 1, 2, 3), GROUPS, spread)
    assert found.valid.tolist() == [False] * 3 + [True] * 3
    assert (found.advantages[:3] == 0).all()
    assert found.advantages[5] > 0


@pytest.mark.parametrize("spread", ["batch", "group"])
def test_a_missing_reward_is_as_if_the_sample_was_not_there(spread):
    with_it = group_advantages(rewards(1.0, NAN, 3, 4, 7, 5), GROUPS, spread)
    without = group_advantages(rewards(1.0, 3, 4, 7, 5), GROUPS[[0, 2, 3, 4, 5]], spread)
    assert not with_it.valid[1]
    assert with_it.advantages[1] == 0
    assert torch.equal(with_it.advantages[[0, 2, 3, 4, 5]], without.advantages)


def test_a_group_of_which_one_reward_is_left_counts_for_nothing():
    found = group_advantages(rewards(1.0, NAN, NAN, NAN, NAN, NAN), GROUPS)
    assert not found.valid.any()
    assert (found.advantages == 0).all()


def test_group_numbers_may_be_any():
    a = group_advantages(rewards(1.0, 5, 2, 4, 3, 9), torch.tensor([7, 900, 7, 900, 7, 900]))
    b = group_advantages(rewards(1.0, 2, 3, 5, 4, 9), GROUPS)
    assert torch.equal(a.advantages, b.advantages[[0, 3, 1, 4, 2, 5]])


def test_rewards_are_added_with_their_weights():
    parts = {"a": rewards(1.0, 2, NAN, 0, 0, 0), "b": rewards(10.0, 0, 0, 0, NAN, 30)}
    total = weighted_sum(parts, {"a": 2.0, "b": -0.5}, GROUPS)
    assert total[[0, 1, 3, 5]].tolist() == [-3, 4, 0, -15]
    assert total[[2, 4]].isnan().all()


def test_normalised_rewards_do_not_care_about_scales():
    a, b = rewards(1.0, 2, 3, 1, 5, 2), rewards(4.0, 1, 1, 7, 7, 7)
    small = weighted_sum({"a": a, "b": b}, {"a": 1.0, "b": 1.0}, GROUPS, "group")
    large = weighted_sum({"a": 1000 * a, "b": b}, {"a": 1.0, "b": 1.0}, GROUPS, "group")
    torch.testing.assert_close(small, large, atol=1e-3, rtol=1e-3)
    alone = group_advantages(a, GROUPS, "group", bound=100).advantages
    torch.testing.assert_close(small[3:].float(), alone[3:])  # b is the same for all of its second group


def test_advantages_of_each_reward_by_hand():
    """GDPO: advantages 1, -1 in either group by a; 2 b adds 2, -2 in the second group, where it differs."""
    groups = torch.tensor([0, 0, 1, 1])
    parts = {"a": rewards(3.0, 1, 50, 10), "b": rewards(7.0, 7, 0.2, 0.1)}
    found = advantages_of_each(parts, {"a": 1.0, "b": 2.0}, groups, AdvantageStd("group", epsilon=1e-12))
    # The sums are 1, -1, 3, -3; their deviation over the batch is sqrt((1 + 1 + 9 + 9) / 4).
    assert found.advantages.tolist() == pytest.approx([x / 5**0.5 for x in (1, -1, 3, -3)], rel=1e-6)
    assert found.valid.all()
    other = advantages_of_each(
        parts, {"a": 1.0, "b": 2.0}, groups, AdvantageStd("group", "sample", epsilon=1e-12)
    )
    # By N - 1 the first advantages are 1 / sqrt(2) of these, and the deviation of the sums sqrt(10 / 3).
    assert other.advantages.tolist() == pytest.approx(
        [x / 2**0.5 / (10 / 3) ** 0.5 for x in (1, -1, 3, -3)], rel=1e-6
    )


def test_samples_with_the_same_sum_are_told_apart_by_each_reward():
    """0 + 2 and 1 + 1: equal in the sum of rewards, and not in that of their advantages."""
    groups = torch.zeros(4, dtype=torch.long)
    parts = {"a": rewards(0.0, 1, 0, 0), "b": rewards(2.0, 1, 0, 2)}
    weights = {"a": 1.0, "b": 1.0}
    of_sum = group_advantages(weighted_sum(parts, weights, groups), groups).advantages
    of_each = advantages_of_each(parts, weights, groups).advantages
    assert of_sum[0] == of_sum[1]
    assert of_each[1] > of_each[0] + 0.1


def test_advantages_of_each_are_bounded_and_do_without_what_is_missing():
    parts = {"a": rewards(1.0, 2, NAN, 0, 1, 2), "b": rewards(1.0, 2, 3, 0, 1, 2)}
    found = advantages_of_each(parts, {"a": 1.0, "b": 1.0}, GROUPS, bound=0.5)
    assert found.valid.tolist() == [True, True, False, True, True, True]
    assert found.advantages[2] == 0
    assert found.advantages.abs().max() == 0.5
    watched = advantages_of_each(parts, {"a": 0.0, "b": 1.0}, GROUPS)
    # Both groups have -1, 0, 1 times sqrt(3 / 2), whose deviation over the batch is 1.
    assert watched.advantages.tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5] * 2, rel=1e-3)
    assert watched.valid.all()


def test_a_reward_with_weight_0_is_not_trained_on():
    parts = {"a": rewards(1.0, 2, 3, 0, 1, 2), "b": rewards(NAN, 200, 3, 0, NAN, 2)}
    assert torch.equal(weighted_sum(parts, {"a": 2.0, "b": 0.0}, GROUPS), 2 * parts["a"].double())


def test_best_and_worst_of_every_group_that_has_them():
    best, worst = best_and_worst(rewards(1.0, 3, 2, 5, 5, 5), GROUPS)
    assert (best.tolist(), worst.tolist()) == ([1], [0])
    best, worst = best_and_worst(rewards(NAN, 3, 2, 5, 9, NAN), GROUPS)
    assert (best.tolist(), worst.tolist()) == ([1, 4], [2, 3])
    assert len(best_and_worst(rewards(NAN, NAN), GROUPS[:2])[0]) == 0


def test_the_best_few_of_every_group():
    mask = top_mask(rewards(1.0, 3, 2, NAN, 5, 5), GROUPS, 1)
    assert mask.tolist() == [False, True, False, False, True, False]
    assert top_mask(rewards(1.0, 3, 2, NAN, 5, 5), GROUPS, 5).tolist() == [True] * 3 + [False, True, True]
