"""Rewards that are slow, far away or unsure: scored in threads, tried again, and NaN where there is none."""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import NamedTuple

import torch
from pydantic import Field

from imagereward.errors import InputError, RewardError
from imagereward.tuning.config import Config
from imagereward.tuning.data.requests import Row
from imagereward.tuning.rewards.weighted import Rewards, check_images

log = logging.getLogger(__name__)


class ScoringConfig(Config):
    """How rewards are asked for."""

    workers: int = Field(
        4, ge=1, description="batches scored at the same time; scorers in this process take turns"
    )
    retries: int = Field(3, ge=0, description="how often a reward that fails is computed again")
    wait: float = Field(1.0, ge=0, description="seconds before the first retry; doubled for each further one")


class ScoredBatch(NamedTuple):
    """Rewards [B] on the CPU by name, NaN where there is none, and the last cause by name."""

    rewards: dict[str, torch.Tensor]
    causes: dict[str, str]


class RewardPool:
    """A pool in which batches are scored while the next is sampled. A context.

    A reward that failed for some batches in a row, two and at least as many as there are workers, is not
    asked again: each has been retried, and every further one would wait as long.
    """

    def __init__(self, rewards: Rewards, config: ScoringConfig):
        self.rewards, self.config = rewards, config
        self._models = threading.Lock()
        self._pending: list[Future[ScoredBatch]] = []
        self._failed = dict.fromkeys(rewards.parts, 0)  # batches in a row
        self._causes = dict.fromkeys(rewards.parts, "")  # what the last of them failed by

    def __enter__(self) -> "RewardPool":
        self._pool = ThreadPoolExecutor(self.config.workers, "imagereward-reward")
        self._pending = []
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, pixels_B_3_H_W: torch.Tensor, rows: Sequence[Row]) -> None:
        """Score a batch some time; waits where twice as many as there are workers are not done.

        Raises NonFiniteScoreError for an image that is not finite.
        """
        check_images(pixels_B_3_H_W, rows)
        before = len(self._pending) - 2 * self.config.workers
        if before >= 0:
            self._pending[before].result()
        self._pending.append(self._pool.submit(self._score, pixels_B_3_H_W, list(rows)))

    def results(self) -> list[ScoredBatch]:
        """What became of every batch, in the order in which they were submitted."""
        return [future.result() for future in self._pending]

    def _score(self, pixels_B_3_H_W: torch.Tensor, rows: list[Row]) -> ScoredBatch:
        rewards, causes = {}, {}
        device = pixels_B_3_H_W.device
        # A thread has its own gradient mode, and its own current device.
        with torch.no_grad(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            for name in self.rewards.parts:
                rewards[name], cause = self._ask(name, pixels_B_3_H_W, rows)
                if cause:
                    causes[name] = cause
        return ScoredBatch(rewards, causes)

    def _ask(self, name: str, pixels_B_3_H_W, rows: list[Row]) -> tuple[torch.Tensor, str]:
        """One reward of a batch: what failed is asked again, alone, then left NaN."""
        found, cause = torch.full((len(rows),), torch.nan), ""
        if self._failed[name] >= max(2, self.config.workers):
            return found, self._causes[name]
        for attempt in range(self.config.retries + 1):
            if attempt:
                time.sleep(self.config.wait * 2 ** (attempt - 1))
            missing = (~found.isfinite()).nonzero().flatten().tolist()
            try:
                given = self._once(name, pixels_B_3_H_W[missing], [rows[row] for row in missing])
            except InputError:
                raise  # a mistake, not a failure
            except Exception as error:  # whatever a reward of someone else's raises: said, counted, bounded
                cause = f"{type(error).__name__}: {error}"
                continue
            found[missing] = torch.where(given.isfinite(), given, torch.nan)
            if found.isfinite().all():
                self._failed[name] = 0
                return found, ""
            cause = "it was not finite"
        failed = int((~found.isfinite()).sum())
        self._failed[name] = 0 if failed < len(rows) else self._failed[name] + 1
        self._causes[name] = cause
        log.warning("reward %s failed for %d of %d images: %s", name, failed, len(rows), cause)
        return found, cause

    def _once(self, name: str, pixels_B_3_H_W, rows: list[Row]) -> torch.Tensor:
        if self.rewards.parts[name][1].takes_turns:
            with self._models:  # or a device would hold the activations of several batches
                return self.rewards.part(name, pixels_B_3_H_W, rows).float().cpu()
        return self.rewards.part(name, pixels_B_3_H_W, rows).float().cpu()


def concatenated(batches: Sequence[ScoredBatch]) -> ScoredBatch:
    """Several batches as one."""
    rewards = {name: torch.cat([each.rewards[name] for each in batches]) for name in batches[0].rewards}
    return ScoredBatch(rewards, {name: cause for each in batches for name, cause in each.causes.items()})


def require_scores(found: ScoredBatch, where: str) -> None:
    """Raises RewardError naming a reward that none of the images has, and `where` that was."""
    for name, values in found.rewards.items():
        if not values.isfinite().any():
            raise RewardError(
                f"reward {name} is down: it failed for all {len(values)} images of {where}, the last time "
                f"with {found.causes.get(name, 'no cause')}; resume=true goes on from the last checkpoint"
            )
