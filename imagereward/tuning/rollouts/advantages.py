"""Who in a group did better than its like: pure functions of rewards [N] and group numbers [N].

A reward that is NaN, because it could not be had, takes no part anywhere.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch

StdScope = Literal["batch", "group"]


class AdvantageStd(NamedTuple):
    """How rewards' deviation is measured, by which advantages are divided.

    spread   over all rewards of the update, each about their mean, or over the group's own
    divisor  population: the sum of squares is divided by their number N (Flow-GRPO); sample: by N - 1
             (DanceGRPO, DDPO)
    epsilon  is added, so that groups that hardly differ are not blown up
    """

    scope: StdScope = "batch"
    divisor: Literal["population", "sample"] = "population"
    epsilon: float = 1e-4


class Advantages(NamedTuple):
    """`advantages` [N], 0 where not `counted` [N]: no reward, or a group whose rewards are all the same."""

    advantages: torch.Tensor
    valid: torch.Tensor


def group_advantages(
    rewards_N, groups_N, deviation: AdvantageStd | StdScope = "batch", bound: float = 5.0
) -> Advantages:
    """(reward - mean of its group) / (deviation + epsilon), in -bound..bound.

    Shao et al. 2024, arXiv:2402.03300. `deviation` may be its `spread` alone.
    """
    worth, valid = _standardised(rewards_N, groups_N, deviation)
    return Advantages(torch.where(valid, worth.clamp(-bound, bound), 0.0).float(), valid)


def weighted_sum(
    parts: Mapping[str, torch.Tensor],
    weights: Mapping[str, float],
    groups_N: torch.Tensor,
    normalize_by: AdvantageStd | StdScope | None = None,
) -> torch.Tensor:
    """The weighted sum of rewards [N] by name; NaN where any of them is.

    With `normalise` each is standardised first, as an advantage is: scales then do not matter, and one that
    is the same for all of a group adds nothing.
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
    """The number of the best and of the worst sample of every group in which they differ, two times [G]."""
    pairs = []
    for group in groups_N.unique():
        members = ((groups_N == group) & rewards_N.isfinite()).nonzero().flatten()
        values = rewards_N[members]
        if len(members) and values.max() > values.min():
            pairs.append((int(members[values.argmax()]), int(members[values.argmin()])))
    best, worst = zip(*pairs, strict=True) if pairs else ((), ())
    return torch.tensor(best, dtype=torch.long), torch.tensor(worst, dtype=torch.long)


def top_mask(rewards_N, groups_N, count: int) -> torch.Tensor:
    """Which samples [N] are among the `count` best of their group; of equal ones, the first."""
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
