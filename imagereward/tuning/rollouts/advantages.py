"""Group-relative advantages, weighted sums and the best samples: functions of rewards [N] and groups [N].

A reward that failed is NaN; its sample is left out of every mean, deviation and comparison.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch

StdScope = Literal["batch", "group"]


class AdvantageStd(NamedTuple):
    """How the standard deviation of rewards is measured by which advantages are divided.

    scope    batch: over all rewards of the update, about their mean; group: over the group's rewards
    divisor  population: the sum of squares is divided by their number N (Flow-GRPO); sample: by N - 1
             (DanceGRPO, DDPO)
    epsilon  added to the deviation, so that groups with nearly equal rewards do not get large advantages
    """

    scope: StdScope = "batch"
    divisor: Literal["population", "sample"] = "population"
    epsilon: float = 1e-4


class Advantages(NamedTuple):
    """`advantages` [N], and `valid` [N]: False without a reward, and in groups whose rewards are all equal.

    Where it is not valid an advantage is 0.
    """

    advantages: torch.Tensor
    valid: torch.Tensor


def group_advantages(
    rewards_N, groups_N, deviation: AdvantageStd | StdScope = "batch", bound: float = 5.0
) -> Advantages:
    """(reward - mean of its group) / (deviation + epsilon), clipped to [-bound, bound].

    Shao et al. 2024, arXiv:2402.03300. `deviation` may be the name of its scope alone.
    """
    worth, valid = _standardised(rewards_N, groups_N, deviation)
    return Advantages(torch.where(valid, worth.clamp(-bound, bound), 0.0).float(), valid)


def weighted_sum(
    parts: Mapping[str, torch.Tensor],
    weights: Mapping[str, float],
    groups_N: torch.Tensor,
    normalize_by: AdvantageStd | StdScope | None = None,
) -> torch.Tensor:
    """The weighted sum [N], float64, of rewards [N] by name; NaN where any of them is NaN.

    With `normalize_by` each reward is first replaced by its group-relative advantage, unclipped: rewards of
    different scales then weigh the same, and a reward that is equal for a whole group adds 0.
    """
    total = torch.zeros(len(groups_N), dtype=torch.float64)
    for name, rewards_N in parts.items():
        values = rewards_N.double()
        if normalize_by is not None:
            worth, valid = _standardised(values, groups_N, normalize_by)
            values = torch.where(values.isfinite(), torch.where(valid, worth, 0.0), torch.nan)
        total = total + weights[name] * values
    return total


def best_and_worst(rewards_N, groups_N) -> tuple[torch.Tensor, torch.Tensor]:
    """(best, worst), [G] each: indices of the samples with the highest and the lowest reward of every group.

    Groups whose rewards are all equal or all NaN are left out. The pairs that objectives over preferences
    take, such as Diffusion-DPO (Wallace et al. 2023, arXiv:2311.12908).
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
    """[N] whether the sample is among the `count` best of its group; of equal ones, the first are.

    The samples that objectives such as RAFT train on (Dong et al. 2023, arXiv:2304.06767).
    """
    mask = torch.zeros(len(rewards_N), dtype=torch.bool)
    for group in groups_N.unique():
        members = ((groups_N == group) & rewards_N.isfinite()).nonzero().flatten()
        order = rewards_N[members].argsort(descending=True, stable=True)
        mask[members[order[:count]]] = True
    return mask


def _standardised(rewards_N, groups_N, by: AdvantageStd | StdScope) -> tuple[torch.Tensor, torch.Tensor]:
    """(standardised rewards in float64, which of them count)."""
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
    # Extremes and not the deviation decide, for that is seldom exactly 0.
    valid = there & (extreme("amax", -torch.inf) > extreme("amin", torch.inf))
    return away / (deviation + by.epsilon), valid
