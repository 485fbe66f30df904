"""PairSource: pairs of a chosen and a rejected image of one prompt, from a data set or drawn and scored."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from imagereward.tuning.data.chunks import Chunk
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.requests import Row, prompts_of
from imagereward.tuning.data.seeding import rows_for_samples
from imagereward.tuning.policy.policy import CURRENT, Policy
from imagereward.tuning.rollouts.advantages import best_and_worst
from imagereward.tuning.rollouts.clean import CleanBatch, clean_batches
from imagereward.tuning.rollouts.collect import Rollout
from imagereward.tuning.rollouts.latent_images import LatentPairs
from imagereward.tuning.rollouts.sample_source import SampleSource
from imagereward.tuning.rollouts.times import Times


class PairSource(Protocol):
    """Where DPO's pairs come from."""

    @property
    def prompts(self) -> Sequence[str]:
        """All prompts of the training data."""

    @property
    def rows(self) -> Sequence[Row]:
        """All prompts of the training data, with the pictures that the model takes."""

    @property
    def encodes_images(self) -> bool:
        """Whether minibatches encode the images, as `Objective.encodes_images`."""

    def prepare(self) -> None:
        """As `Objective.prepare`."""

    def minibatches(self, policy: Policy, plan: UpdatePlan, times: Times) -> Iterator[Sequence[Any]]:
        """This process's minibatches of an update, as `Objective.minibatches` gives them."""

    def batch(self, policy: Policy, minibatch: Any) -> CleanBatch:
        """The minibatch's pairs: latents [2, B, C, h, w], the chosen first."""

    def prompts_in(self, minibatch: Any) -> Sequence[str]:
        """The minibatch's prompts."""

    def end_update(self) -> dict[str, float]:
        """Metrics of the update's pairs."""


class StoredPass(NamedTuple):
    """One training time of the pairs of a chunk.

    pass_index  index of the time among those of a pair
    share       the weight in the loss of the update's optimizer step
    """

    chunk: Chunk
    pass_index: int
    share: float


class StoredPairs:
    """The pairs of a data set; every epoch has another order, which `seed` decides."""

    def __init__(self, data: LatentPairs, seed: int):
        self.data, self.seed = data, seed

    @property
    def prompts(self) -> Sequence[str]:
        """The prompt of every pair."""
        return self.data.texts

    @property
    def rows(self) -> Sequence[Row]:
        """The prompt of every pair, with the pictures that the model takes."""
        return self.data.rows

    @property
    def encodes_images(self) -> bool:
        """Yes, unless the latents are cached and rows have no pictures."""
        return self.data.encodes

    def prepare(self) -> None:
        """Fills the cache of latents, if there is one."""
        self.data.fill()

    def minibatches(self, policy: Policy, plan: UpdatePlan, times: Times) -> Iterator[list[StoredPass]]:
        """One step of the optimizer, with this process's chunks at each of their training times."""
        passes = times.passes(policy.dynamics.steps)
        yield [
            StoredPass(chunk, index, chunk.share / passes) for chunk in plan.mine for index in range(passes)
        ]

    def batch(self, policy: Policy, minibatch: StoredPass) -> CleanBatch:
        """The chunk's pairs, encoded."""
        samples = minibatch.chunk.samples
        indices = self._indices(minibatch)
        rows = [self.data.rows[index] for index in indices]
        return CleanBatch(
            torch.stack(self.data.latents(indices)),
            policy.denoiser.encode(rows),
            prompts_of(rows),
            list(samples),
            torch.ones(len(samples)),
            minibatch.pass_index,
            minibatch.share,
        )

    def prompts_in(self, minibatch: StoredPass) -> list[str]:
        """The prompts of the chunk's pairs."""
        return [self.data.texts[index] for index in self._indices(minibatch)]

    def end_update(self) -> dict[str, float]:
        """No metrics."""
        return {}

    def _indices(self, minibatch: StoredPass) -> list[int]:
        return rows_for_samples(minibatch.chunk.samples, len(self.data), self.seed)


class DrawnPairs:
    """The best and the worst of each drawn group.

    Groups whose rewards are all equal, or without two rewards, are left out by all processes alike, and are
    counted in the metrics of the update: `counted` is the share of images in pairs.

    source    draws and scores the samples
    sampler   the weights that draw: "current", or the name of a snapshot
    parts     steps of the optimizer in an update
    compared  gives values [N] of a rollout's samples, NaN without a reward, of which the best has the
              highest; default: the weighted sum of rewards
    """

    def __init__(
        self,
        source: SampleSource,
        sampler: str = CURRENT,
        parts: int = 1,
        compared: Callable[[Rollout], torch.Tensor] = lambda rollout: rollout.total,
    ):
        self.source, self.sampler, self.parts, self.compared = source, sampler, parts, compared

    @property
    def prompts(self) -> list[str]:
        """The prompts of all rows of the training data."""
        return self.source.prompts

    @property
    def rows(self) -> Sequence[Row]:
        """All rows of the training data."""
        return self.source.rows

    @property
    def encodes_images(self) -> bool:
        """No: drawn images are latents."""
        return False

    def prepare(self) -> None:
        """Does nothing."""

    def minibatches(self, policy: Policy, plan: UpdatePlan, times: Times) -> Iterator[list[CleanBatch]]:
        """Draw and score the update's images; a batch has pairs of this process's groups."""
        grouped = self.source.plan(plan, whole_groups=True)
        rollout = self.source.draw(policy, grouped, self.sampler)
        pairs = torch.stack(best_and_worst(self.compared(rollout), rollout.groups_N), 1)
        learned = torch.zeros(len(rollout.groups_N), dtype=torch.bool)
        learned[pairs.flatten()] = True
        self.source.count(rollout, learned, plan.update)
        yield from clean_batches(
            rollout,
            grouped,
            pairs,
            torch.ones(len(pairs)),
            passes=times.passes(policy.dynamics.steps),
            parts=self.parts,
        )

    def batch(self, policy: Policy, minibatch: CleanBatch) -> CleanBatch:
        """The minibatch itself."""
        return minibatch

    def prompts_in(self, minibatch: CleanBatch) -> list[str]:
        """The minibatch's prompts."""
        return minibatch.prompts

    def end_update(self) -> dict[str, float]:
        """The metrics of the rollout, see `Rollout.metrics`."""
        return self.source.metrics
