"""JudgeObjective: the loss of a judge's scores on ranked prompts, as the trainer takes it.

Shapes: N images of a batch's prompts, C outputs of the head, P pairs.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from imagereward.agreement.rankings import RankedPrompt
from imagereward.images.reading import load_pixels
from imagereward.models.vlm.scorer import VLMScorer
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.seeding import rows_for_samples
from imagereward.tuning.judges.data import Pairs, pairs_of
from imagereward.tuning.judges.losses import bradley_terry, expected_bradley_terry, rao_kupper, thurstone
from imagereward.tuning.objectives.base import Objective
from imagereward.tuning.policy.snapshots import Snapshot


class JudgeModule(nn.Module):
    """The parts of a judge that may learn, and its scores as one forward pass.

    scorer  a judge with a reward head
    sees    whether the vision tower learns, and so needs a graph

    The model's output layer, which the head takes the place of, is no part. In training mode only the head's
    dropout is on.
    """

    def __init__(self, scorer: VLMScorer, sees: bool):
        super().__init__()
        assert scorer.reward_head is not None
        self.model, self.head, self.sees = scorer.backbone.model.model, scorer.reward_head, sees
        self._scorer = (scorer,)  # in a tuple, so no submodule: its other parts do not learn

    @property
    def scorer(self) -> VLMScorer:
        """The judge."""
        return self._scorer[0]

    @property
    def layers(self) -> list[str]:
        """Class names of the language model's layers, which sharding gathers one at a time.

        The vision tower is gathered whole: how often its layers run depends on the images of a process.
        """
        language: Any = self.scorer.backbone.language_model
        return sorted({type(layer).__name__ for layer in language.layers})

    def train(self, mode: bool = True) -> "JudgeModule":
        """Set the training mode: the head's alone."""
        super().train(False)
        self.training = mode
        self.head.train(mode)
        return self

    def forward(self, prompts: list[str], batch: dict[str, list]) -> torch.Tensor:
        """float32 [N, C]: the head's outputs for prompt n and the n-th image of a batch of `VLMImages`."""
        scorer = self.scorer
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.sees):
            encoded = scorer.encode_pixels([batch])
        texts = scorer.encode_prompts(prompts)
        rows = [scorer.turns.row(text, encoded, [place]) for place, text in enumerate(texts)]
        return scorer.outputs(rows, encoded)


class JudgeLearner:
    """A judge in training, with the attributes that the trainer needs (see `Learner`)."""

    def __init__(self, module: JudgeModule):
        self.module: nn.Module = module
        self.scorer = module.scorer
        self.snapshots: dict[str, Snapshot] = {}

    def outputs(self, prompts: Sequence[RankedPrompt]) -> torch.Tensor:
        """float32 [N, C]: the head's outputs for all images of the prompts, in order."""
        paths = [path for prompt in prompts for path in prompt.generations]
        texts = [prompt.prompt for prompt in prompts for _ in prompt.generations]
        items = [item for (item,) in load_pixels(paths, self.scorer.processors)]
        return self.module(texts, self.scorer.processor.collate(items))


class RankedBatch(NamedTuple):
    """Ranked prompts of one backward pass, and their share of the update's pairs."""

    prompts: tuple[RankedPrompt, ...]
    share: float


class JudgeObjective(Objective):
    """The mean loss of an update's pairs of images.

    ranked         prompts with ranked images
    loss           name of the loss, see `pair_losses`
    tie_threshold  for loss "ties"
    seed           decides the order of prompts
    """

    def __init__(self, ranked: Sequence[RankedPrompt], loss: str, tie_threshold: float, seed: int):
        self.ranked, self.name, self.tie_threshold, self.seed = ranked, loss, tie_threshold, seed

    @property
    def prompts(self) -> Sequence[str]:
        """All prompts."""
        return [each.prompt for each in self.ranked]

    def minibatches(self, policy: Any, plan: UpdatePlan) -> Iterator[list[RankedBatch]]:
        """One step of the optimizer, with this process's prompts; shares are of the update's pairs."""
        prompts = [
            tuple(self.ranked[row] for row in rows_for_samples(chunk.samples, len(self.ranked), self.seed))
            for chunk in plan.chunks
        ]
        counts = [len(pairs_of(each, self.name == "ties").better) for each in prompts]
        yield [
            RankedBatch(each, count / sum(counts))
            for each, count, owner in zip(prompts, counts, plan.owners, strict=True)
            if owner == plan.rank
        ]

    def loss(
        self, policy: JudgeLearner, minibatch: RankedBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The mean loss of the pairs; metric: `train_accuracy`, the share of untied pairs in order."""
        losses, right = self.judged(policy, minibatch.prompts)
        return losses.mean(), {"train_accuracy": right.float().mean()} if len(right) else {}

    def judged(
        self, policy: JudgeLearner, prompts: Sequence[RankedPrompt]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(losses of all pairs [P], for each untied pair whether the better image scores higher)."""
        pairs, outputs = pairs_of(prompts, self.name == "ties"), policy.outputs(prompts)
        margins = (outputs[pairs.better, 0] - outputs[pairs.worse, 0]).detach()
        right = margins[~pairs.tied.to(margins.device)] > 0
        return pair_losses(outputs, pairs, self.name, self.tie_threshold), right

    def prompts_in(self, minibatch: RankedBatch) -> Sequence[str]:
        """The minibatch's prompts."""
        return [each.prompt for each in minibatch.prompts]


def pair_losses(
    outputs_N_C: torch.Tensor, pairs: Pairs, loss: str, tie_threshold: float = 0.5
) -> torch.Tensor:
    """The loss [P] of every pair, of the head's outputs [N, C]: the score, or mean and log deviation.

    loss  "bradley-terry", "ties", "uncertain" or "thurstone"
    """
    first, second = outputs_N_C[pairs.better], outputs_N_C[pairs.worse]
    margins = first[:, 0] - second[:, 0]
    if loss == "bradley-terry":
        return bradley_terry(margins)
    if loss == "ties":
        return rao_kupper(margins, pairs.tied.to(margins.device), tie_threshold)
    variances = (2 * first[:, 1]).exp() + (2 * second[:, 1]).exp()
    return (expected_bradley_terry if loss == "uncertain" else thurstone)(margins, variances)
