"""`RewardMetric`: the mean score as a torchmetrics Metric."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from imagereward.errors import InputError, missing_extra
from imagereward.images.reading import listed
from imagereward.scoring.api import PairScorer

try:
    from torchmetrics import Metric
except ImportError as error:
    raise missing_extra("RewardMetric", "integrations", error) from error


class _Shared:
    """Holds a scorer that copies of the metric share, and that is no submodule of it."""

    def __init__(self, scorer: PairScorer):
        self.scorer = scorer

    def __deepcopy__(self, memo: dict) -> "_Shared":
        return self


class RewardMetric(Metric):
    """The mean score of all images so far, over all processes; NaN before the first image.

    Images to which a judge gave no score (NaN) are left out of the mean and counted in `unscored`. `.to()`
    does not move the scorer, copies share it, and checkpoints of the metric do not hold its weights.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: torch.Tensor
    count: torch.Tensor
    unscored: torch.Tensor

    def __init__(self, scorer: PairScorer, **options: Any):
        super().__init__(**options)
        self._shared = _Shared(scorer)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("unscored", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Any, prompts: str | Sequence[str]) -> None:
        """Score B images with B prompts, or with one prompt for all.

        images  a list, a tensor [B, 3, H, W] in [0, 1], or one image in any form that `score` takes

        Raises InputError for no images, and for a number of prompts that differs from that of images.
        """
        images = listed(images)
        prompts = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
        if not images:
            raise InputError("no images: expected at least one")
        scores = self._shared.scorer.score_pairs(prompts, images)
        found = [score for score in scores if math.isfinite(score)]
        self.total += sum(found)
        self.count += len(found)
        self.unscored += len(scores) - len(found)

    def compute(self) -> torch.Tensor:
        """The mean score, a scalar tensor."""
        return self.total / self.count
