"""RewardPool: scores batches of images in threads, retries rewards that fail, and gives NaN if all fail."""

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
from imagereward.tuning.data.requests import Row, prompts_of
from imagereward.tuning.rewards.weighted import Rewards, check_images

log = logging.getLogger(__name__)


class ScoringConfig(Config):
    """Threads and retries of reward computations."""

    workers: int = Field(
        4,
        ge=1,
        description="batches scored at the same time; models in this process take turns, functions do not",
    )
    retries: int = Field(3, ge=0, description="how often a reward that fails is computed again")
    wait: float = Field(1.0, ge=0, description="seconds before the first retry; doubled for each further one")


class ScoredBatch(NamedTuple):
    """The rewards of a batch of B images.

    rewards  {name: [B] float32 on the CPU}; NaN where the reward failed
    causes   {name: the last cause of failure}, for rewards that failed for any image
    """

    rewards: dict[str, torch.Tensor]
    causes: dict[str, str]


class RewardPool:
    """A context whose threads score batches of images while the caller draws the next batch.

    group  images in a group, for rewards that are given whole groups (`GroupReward`): in the order of
           submission, every `group` images are a group of one row, whatever the batches. None: such rewards
           are refused

    A reward that failed for all images of max(2, workers) consecutive batches is not computed any more, and
    is NaN for further batches: each batch would only wait for all retries again. A group counts as a batch.
    Raises InputError for rewards that need groups where there are none, or of one image.
    """

    def __init__(self, rewards: Rewards, config: ScoringConfig, group: int | None = None):
        if rewards.of_groups and (group is None or group < 2):
            raise InputError(
                f"reward {rewards.of_groups[0]} is given whole groups of images; expected groups of at least "
                f"2, got {group or 'none'}"
            )
        self.rewards, self.config, self.group = rewards, config, group
        self._single = [name for name in rewards.parts if name not in rewards.of_groups]
        self._models = threading.Lock()
        self._pending: list[Future[ScoredBatch]] = []  # the parts that are no GroupReward, by batch
        self._groups: list[Future[ScoredBatch]] = []  # those that are, by group
        self._waiting: list[tuple[torch.Tensor, Row]] = []  # images of a group that is not complete
        self._sizes: list[int] = []  # images of each batch
        self._failed = dict.fromkeys(rewards.parts, 0)  # consecutive batches without any reward
        self._causes = dict.fromkeys(rewards.parts, "")  # cause of the last failure

    def __enter__(self) -> "RewardPool":
        self._pool = ThreadPoolExecutor(self.config.workers, "imagereward-reward")
        self._pending, self._groups, self._waiting, self._sizes = [], [], [], []
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, pixels_B_3_H_W: torch.Tensor, rows: Sequence[Row]) -> None:
        """Score a batch in a thread.

        pixels_B_3_H_W  images in [0, 1]
        rows            the images' rows, B of them

        Blocks while 2 * workers earlier batches are unfinished. Raises NonFiniteScoreError for an image that
        is not finite, InputError for a group with different prompts if a reward is given whole groups.
        """
        check_images(pixels_B_3_H_W, rows)
        self._sizes.append(len(rows))
        self._begin(self._pending, pixels_B_3_H_W, list(rows), self._single)
        if self.group is None or not self.rewards.of_groups:
            return
        self._waiting += zip(pixels_B_3_H_W, rows, strict=True)
        while len(self._waiting) >= self.group:
            complete, self._waiting = self._waiting[: self.group], self._waiting[self.group :]
            images, own = zip(*complete, strict=True)
            if len(set(prompts_of(own))) > 1:
                raise InputError(f"a group of {self.group} images has different prompts: {prompts_of(own)}")
            self._begin(self._groups, torch.stack(images), list(own), self.rewards.of_groups)

    def results(self) -> list[ScoredBatch]:
        """The rewards of all submitted batches, in the order of submission; waits for unfinished batches.

        Raises InputError if the last group is not complete and a reward is given whole groups.
        """
        if self._waiting:
            raise InputError(f"{len(self._waiting)} images are left of a group of {self.group}")
        batches = [future.result() for future in self._pending]
        if not self._groups:
            return batches
        judged, parts = concatenated([future.result() for future in self._groups]), self.rewards.parts
        # The same images in the same order, cut into the batches in which they were submitted.
        cut = {name: values.split(self._sizes) for name, values in judged.rewards.items()}
        merged = []
        for place, batch in enumerate(batches):
            each = batch.rewards | {name: values[place] for name, values in cut.items()}
            merged.append(ScoredBatch({name: each[name] for name in parts}, batch.causes | judged.causes))
        return merged

    def _begin(self, pending: list[Future[ScoredBatch]], pixels, rows: list[Row], names: list[str]) -> None:
        """Score images in a thread by the parts `names`; the future is appended to `pending`."""
        before = len(pending) - 2 * self.config.workers
        if before >= 0:
            pending[before].result()
        pending.append(self._pool.submit(self._score, pixels, rows, names))

    def _score(self, pixels_B_3_H_W: torch.Tensor, rows: list[Row], names: list[str]) -> ScoredBatch:
        rewards, causes = {}, {}
        device = pixels_B_3_H_W.device
        # A thread has its own gradient mode, and its own current device.
        with torch.no_grad(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            for name in names:
                rewards[name], cause = self._ask(name, pixels_B_3_H_W, rows)
                if cause:
                    causes[name] = cause
        return ScoredBatch(rewards, causes)

    def _ask(self, name: str, pixels_B_3_H_W, rows: list[Row]) -> tuple[torch.Tensor, str]:
        """(one reward [B] of a batch, cause of the last failure or "").

        Images without a finite reward are scored again, without the others, up to `retries` times; an image
        that still has none gets NaN. A `GroupReward` is given its group again as a whole.
        """
        whole = name in self.rewards.of_groups
        found, cause = torch.full((len(rows),), torch.nan), ""
        if self._failed[name] >= max(2, self.config.workers):
            return found, self._causes[name]
        for attempt in range(self.config.retries + 1):
            if attempt:
                time.sleep(self.config.wait * 2 ** (attempt - 1))
            missing = list(range(len(rows)))
            if not whole:
                missing = (~found.isfinite()).nonzero().flatten().tolist()
            try:
                given = self._once(name, pixels_B_3_H_W[missing], [rows[row] for row in missing])
            except InputError:
                raise  # an error of the caller, which no retry mends
            except Exception as error:  # a reward of the user's own may raise anything; retries are bounded
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
            with self._models:  # one at a time: the device holds the activations of one batch only
                return self.rewards.part(name, pixels_B_3_H_W, rows).float().cpu()
        return self.rewards.part(name, pixels_B_3_H_W, rows).float().cpu()


def concatenated(batches: Sequence[ScoredBatch]) -> ScoredBatch:
    """The batches as one, in order; of a reward's causes the last stays."""
    rewards = {name: torch.cat([each.rewards[name] for each in batches]) for name in batches[0].rewards}
    return ScoredBatch(rewards, {name: cause for each in batches for name, cause in each.causes.items()})


def require_scores(found: ScoredBatch, where: str) -> None:
    """Raises RewardError if a reward failed for all images.

    where  the images' name in the message, such as "update 3"
    """
    for name, values in found.rewards.items():
        if not values.isfinite().any():
            raise RewardError(
                f"reward {name} is down: it failed for all {len(values)} images of {where}, the last time "
                f"with {found.causes.get(name, 'no cause')}; resume=true goes on from the last checkpoint"
            )
