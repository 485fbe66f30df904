"""Comparison: the images and rewards of two generators, and the differences with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from imagereward.agreement.intervals import mean_interval
from imagereward.tuning.data.requests import Row


@dataclass(frozen=True)
class Comparison:
    """The images and rewards of two generators, for M prompts and K seeds.

    prompts    the M prompts
    before     {reward: [M, K]} of the base; "sum" is the weighted sum of several rewards
    after      the same of the tuned generator
    diversity  (base, tuned): mean distance between a prompt's images, see `diversity`; None for one seed
    images     (base, tuned): [M, K, 3, H, W] in [0, 1], on the CPU
    pictures_of  the M rows, whose image and mask the page shows beside the images; empty: none
    """

    prompts: list[str]
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]
    diversity: tuple[float, float] | None
    images: tuple[torch.Tensor, torch.Tensor] = field(repr=False)
    pictures_of: Sequence[Row] = field(default=(), repr=False)

    def rows(self) -> list[dict[str, Any]]:
        """A dict for each reward, with 95 % intervals over prompts.

        "base" and "tuned" are means, and "base ±" and "tuned ±" half the width of the means' intervals.
        "difference" is tuned - base, and "low" and "high" bound it. "in base deviations" is the difference
        in standard deviations of the base's rewards. "win rate" is in 0..1; see `win_rate`.
        """
        rows = []
        for name, before in self.before.items():
            after = self.after[name]
            low, high = paired_interval(before.mean(1), after.mean(1))
            rows.append(
                {
                    "reward": name,
                    "base": float(before.mean()),
                    "base ±": _half_interval(before),
                    "tuned": float(after.mean()),
                    "tuned ±": _half_interval(after),
                    "difference": float((after - before).mean()),
                    "low": low,
                    "high": high,
                    "in base deviations": _in_deviations(before, after),
                    "win rate": win_rate(before, after),
                }
            )
        return rows


def paired_interval(before_M: np.ndarray, after_M: np.ndarray) -> tuple[float, float]:
    """(low, high): 95 % interval of the mean of after - before over M prompts, by Student's t.

    (nan, nan) for one prompt. Exact for any number of normally distributed differences; see
    `agreement/intervals.py`.
    """
    _, low, high = mean_interval(np.asarray(after_M, float) - np.asarray(before_M, float))
    return low, high


def _in_deviations(before: np.ndarray, after: np.ndarray) -> float:
    """Mean of after - before, in standard deviations of before; NaN if all of before are equal."""
    equal = before.max() == before.min()
    return math.nan if equal else float((after - before).mean() / before.std())


def _half_interval(rewards_M_K: np.ndarray) -> float:
    _, low, high = mean_interval(rewards_M_K.mean(1))
    return (high - low) / 2


def win_rate(before: np.ndarray, after: np.ndarray) -> float:
    """Share 0..1 of (prompt, seed) where the tuned image has the higher reward; equal rewards count half."""
    return float((after > before).mean() + (after == before).mean() / 2)
