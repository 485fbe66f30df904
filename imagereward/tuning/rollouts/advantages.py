"""Group-relative advantages, weighted sums, disputed and best samples, of rewards [N] and groups [N].

A reward that failed is NaN; its sample is left out of every mean, deviation and comparison.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch

StdScope = Literal["batch", "group"]
ROUNDING = 1e-9  # places, and means of places, that differ by less are equal


class AdvantageStd(NamedTuple):
    """How to measure the standard deviation of rewards that divides advantages.

    scope    batch: over all rewards of the update, about their mean; group: over the rewards of the group
    divisor  population: the sum of squares is divided by the number N of rewards (Flow-GRPO); sample: by
             N - 1 (DanceGRPO, DDPO)
    epsilon  added to the deviation, so that groups with nearly equal rewards do not get large advantages
    """

    scope: StdScope = "batch"
    divisor: Literal["population", "sample"] = "population"
    epsilon: float = 1e-4


class Advantages(NamedTuple):
    """Advantages of N samples.

    advantages  [N] float32; 0 where not valid
    valid       [N] bool: False for a sample without a reward, and for a group whose rewards are all equal
    """

    advantages: torch.Tensor
    valid: torch.Tensor


def group_advantages(
    rewards_N, groups_N, deviation: AdvantageStd | StdScope = "batch", bound: float = 5.0
) -> Advantages:
    """A_n = clip((r_n - mean of r over the group of n) / (std + epsilon), -bound, bound).

    rewards_N   r, float [N]; NaN where there is no reward
    groups_N    index [N] of each sample's group
    deviation   how `std` is measured, and epsilon; a string is its scope, with the defaults for the rest
    bound       largest advantage either way

    Samples without a reward, and groups whose rewards are all equal, get 0 and are not valid. Shao et al.
    2024, arXiv:2402.03300, section 4.1.2, is scope "group" without epsilon and bound; scope "batch" is
    Flow-GRPO's (arXiv:2505.05470).
    """
    worth, valid = _standardised(rewards_N, groups_N, deviation)
    return Advantages(torch.where(valid, worth.clamp(-bound, bound), 0.0).float(), valid)


def weighted_sum(
    parts: Mapping[str, torch.Tensor],
    weights: Mapping[str, float | torch.Tensor],
    groups_N: torch.Tensor,
    normalize_by: AdvantageStd | StdScope | None = None,
) -> torch.Tensor:
    """sum_k weights[k] * parts[k], [N] float64, of rewards [N] by name; NaN where any of them is NaN.

    A weight is a number, or [N] where it depends on the sample. A reward with weight 0 is watched only: it is
    left out, and its NaN do not count. With `normalize_by` each reward is first replaced by its unclipped
    group-relative advantage. Rewards on different scales then have the same influence, and a reward that is
    equal within a group adds 0.
    """
    total = torch.zeros(len(groups_N), dtype=torch.float64)
    for name, rewards_N in parts.items():
        if isinstance(weights[name], float | int) and not weights[name]:
            continue
        values = rewards_N.double()
        if normalize_by is not None:
            worth, valid = _standardised(values, groups_N, normalize_by)
            values = torch.where(values.isfinite(), torch.where(valid, worth, 0.0), torch.nan)
        total = total + weights[name] * values
    return total


def advantages_of_each(
    parts: Mapping[str, torch.Tensor],
    weights: Mapping[str, float | torch.Tensor],
    groups_N: torch.Tensor,
    deviation: AdvantageStd | StdScope = "group",
    bound: float = 5.0,
) -> Advantages:
    """The rewards' own advantages, added with their weights, and divided by their deviation over the batch.

    parts      {name: rewards [N]}, NaN where there is no reward
    weights    {name: weight}, or [N] where it depends on the sample; the sample of a reward that is NaN is
               left out, unless the weight is 0
    deviation  how the deviation of each reward is measured that divides its advantages; the sum's is always
               measured over the batch, with the same divisor and epsilon
    bound      the results are clipped to this much either way

    With deviations of groups this is GDPO (Liu et al. 2026, arXiv:2601.05242). Rewards on different scales
    have the influence of their weights, and two samples of a group whose rewards differ, but have the same
    sum, are told apart.
    """
    by = AdvantageStd(deviation) if isinstance(deviation, str) else deviation
    total = weighted_sum(parts, weights, groups_N, by)
    return group_advantages(total, groups_N, by._replace(scope="batch"), bound)


def disputed(trained_N: torch.Tensor, watched: Sequence[torch.Tensor], share: float) -> torch.Tensor:
    """[N] bool: whether a sample is among the most disputed of the batch, of GARDO's gated penalty.

    trained_N  the trained reward, NaN where there is none
    watched    rewards [N] that are not trained
    share      0..1

    A sample's dispute is U = w(trained) - mean over watched rewards of w(watched). Its place w by a reward
    is the share of the batch's other samples that have a lower one, an equal one counting half; NaN are left
    out. Of the M samples with U > 0 those with the ceil(share * M) highest U are chosen, and any with a U
    equal to the lowest of these.

    He et al. 2025, arXiv:2512.24138 (GARDO): a penalty is needed only where the trained reward is in doubt.
    Their code subtracts ranks that count from the highest reward, which turns the sign of U around; here a
    sample is chosen that the trained reward places higher than the others do.
    """
    places = torch.stack([_places(each) for each in watched])
    dispute = (_places(trained_N) - places.nanmean(0)).nan_to_num(-1.0)
    above = dispute > ROUNDING
    count = math.ceil(share * int(above.sum()))
    return above & (dispute > dispute.topk(count).values[-1] - ROUNDING) if count else above


def _places(rewards_N: torch.Tensor) -> torch.Tensor:
    """Share [N] float64 of the other samples that have a lower reward, an equal one counting half."""
    rewards, there = rewards_N.double(), rewards_N.isfinite()
    others = rewards[there]
    twice = 2 * (others < rewards[:, None]).sum(1) + (others == rewards[:, None]).sum(1) - 1
    return torch.where(there, twice.double() / 2 / max(1, len(others) - 1), torch.nan)


def best_and_worst(rewards_N, groups_N) -> tuple[torch.Tensor, torch.Tensor]:
    """(best, worst): indices [G] of the samples with the highest and the lowest reward of each group.

    Groups whose rewards are all equal or all NaN are left out. For objectives that learn from pairs, such as
    Diffusion-DPO (Wallace et al. 2023, arXiv:2311.12908).
    """
    pairs = []
    for group in groups_N.unique():
        members = ((groups_N == group) & rewards_N.isfinite()).nonzero().flatten()
        values = rewards_N[members]
        if len(members) and values.max() > values.min():
            pairs.append((int(members[values.argmax()]), int(members[values.argmin()])))
    best, worst = zip(*pairs, strict=True) if pairs else ((), ())
    return torch.tensor(best, dtype=torch.long), torch.tensor(worst, dtype=torch.long)


def top_mask(rewards_N, groups_N, count: int) -> torch.Tensor:
    """[N] bool: whether the sample has one of the `count` highest rewards of its group.

    Of equal rewards the first count as higher; a NaN is never among the highest. For objectives that train on
    the best samples, such as RAFT (Dong et al. 2023, arXiv:2304.06767).
    """
    mask = torch.zeros(len(rewards_N), dtype=torch.bool)
    for group in groups_N.unique():
        members = ((groups_N == group) & rewards_N.isfinite()).nonzero().flatten()
        order = rewards_N[members].argsort(descending=True, stable=True)
        mask[members[order[:count]]] = True
    return mask


def _standardised(rewards_N, groups_N, by: AdvantageStd | StdScope) -> tuple[torch.Tensor, torch.Tensor]:
    """(unclipped advantages [N] float64, valid [N]); see `group_advantages`."""
    by = AdvantageStd(by) if isinstance(by, str) else by
    correction = int(by.divisor == "sample")
    rewards, there = rewards_N.double(), rewards_N.isfinite()
    _, place = groups_N.unique(return_inverse=True)
    count = int(place.max()) + 1 if len(place) else 0
    known = torch.where(there, rewards, 0.0)

    def mean_in_groups(values, correction: int = 0):
        zeros = values.new_zeros(count)
        sums = zeros.index_add(0, place, values)
        return (sums / (zeros.index_add(0, place, there.double()) - correction).clamp(min=1))[place]

    def extreme(kind: str, empty: float):
        start = rewards.new_full((count,), empty)
        return start.scatter_reduce(0, place, torch.where(there, rewards, empty), kind)[place]

    away = torch.where(there, rewards - mean_in_groups(known), 0.0)
    if by.scope == "group":
        deviation = mean_in_groups(away**2, correction).sqrt()
    else:
        present = rewards[there]
        deviation = present.std(correction=correction) if len(present) > 1 else rewards.new_zeros(())
    # Equal rewards are found by maximum and minimum: rounding seldom lets their deviation be exactly 0.
    valid = there & (extreme("amax", -torch.inf) > extreme("amin", torch.inf))
    return away / (deviation + by.epsilon), valid
