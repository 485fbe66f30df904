"""Learner: a frozen scorer and what of it learns, with the loss of the choices' kind, as Trainer takes it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from imagereward.adapters.base import Adapter
from imagereward.scoring.questions import diagonal
from imagereward.scoring.scorer import Scorer
from imagereward.tuning.distributed import rank_and_ranks
from imagereward.tuning.personal.choice import Choices, Kind
from imagereward.tuning.personal.config import LearningConfig
from imagereward.tuning.personal.data import ChoiceData, ImageStore
from imagereward.tuning.personal.losses import dpo_loss, label_loss, pairwise_loss, rating_loss
from imagereward.tuning.reward_model.preference import NO_IMAGE, image_prompt_pairs, ranked_pairs

# Pairs in a forward pass without gradients.
SCORED_AT_ONCE = 64


class Learned(Protocol):
    """What learns: an `Adapter`, or other weights of a scorer."""

    def weights(self) -> dict[str, torch.Tensor]:
        """Its tensors by name."""

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take these values."""

    def learned(self) -> list[nn.Parameter]:
        """The parameters that an optimizer changes."""

    def let_learn(self, learn: bool = True) -> None:
        """Let gradients reach the parameters, or freeze them."""

    def train(self, mode: bool = True) -> Any:
        """Set its own training mode, for dropout."""


class Standard(NamedTuple):
    """Mean and standard deviation of the base's scores on the choices' images: the losses' unit of scores.

    So one learning rate suits cosines and ratings from 1 to 10 alike.
    """

    mean: float
    std: float


class Learner(nn.Module):
    """A scorer, of which only `learned` learns: its parameters are the only ones of this module.

    kind  of the choices, which decides the loss; with `dpo`, preferences count relative to the base

    The state dict is that of what learns. `forward` gives {loss, scores}, scores as the scorer's own. Of
    several processes that learn together, each is given the whole batch, and computes its own rows; their
    losses average to the batch's, so that they learn what one process does.
    """

    def __init__(
        self,
        scorer: Scorer,
        learned: Learned,
        store: ImageStore,
        kind: Kind,
        standard: Standard,
        dpo: bool = False,
        beta: float = 1.0,
    ):
        super().__init__()
        self.kind, self.standard, self.dpo, self.beta = kind, standard, dpo, beta
        self._outside = (scorer, learned, store)  # in a tuple: Trainer walks all modules in every step
        self._learned = nn.ParameterList(learned.learned())

    @property
    def scorer(self) -> Scorer:
        """The scorer."""
        return self._outside[0]

    @property
    def learned(self) -> Learned:
        """What learns."""
        return self._outside[1]

    @property
    def store(self) -> ImageStore:
        """The images of all choices."""
        return self._outside[2]

    @contextmanager
    def learning_alone(self) -> Iterator[None]:
        """A context in which no other parameter of the scorer gets gradients, and the scorer is in eval mode.

        The scorer's own dropout would only disturb so few choices.
        """
        own = {id(value) for value in self.learned.learned()}
        others = [v for v in self.scorer.parameters() if v.requires_grad and id(v) not in own]
        try:
            for value in others:
                value.requires_grad_(False)
            with self.scorer.evaluating():
                yield
        finally:
            for value in others:
                value.requires_grad_(True)

    def forward(self, prompts: list[str], places: torch.Tensor, **targets: torch.Tensor) -> dict:
        """{loss, scores}: [B, K] with 0 where there is no image, or [B] for ratings and labels."""
        rank, ranks = rank_and_ranks()
        if self.training and ranks > 1:
            rows = list(range(rank, len(prompts), ranks))
            own = self._computed(*of_rows(rows or [0], prompts, places, targets))
            whole = self._weight(targets, range(len(prompts)))
            return {**own, "loss": own["loss"] * (ranks * self._weight(targets, rows) / max(1, whole))}
        return self._computed(prompts, places, targets)

    def _weight(self, targets: Mapping[str, torch.Tensor], rows: Sequence[int]) -> int:
        """How many terms these rows of a batch have in its loss, which is a mean."""
        if self.kind in ("rankings", "pairs"):
            return len(ranked_pairs(targets["ranks"][list(rows)])) if len(rows) else 0
        return len(rows)

    def _computed(
        self, prompts: list[str], places: torch.Tensor, targets: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        ranks = targets.get("ranks")
        pairs = diagonal(len(places)) if ranks is None else image_prompt_pairs(ranks)
        features = self.store.encoded(places.tolist())
        found = self.scorer.head(features, self.scorer.encode_prompts(prompts), pairs)
        if ranks is None:
            scores = found
        else:
            scores = found.new_zeros(ranks.shape)
            scores[ranks != NO_IMAGE] = found
        return {"loss": self.loss_of(scores, **targets), "scores": scores}

    def loss_of(self, scores: torch.Tensor, **targets: torch.Tensor) -> torch.Tensor:
        """The loss of scores, with the other tensors of a batch."""
        standard = (scores - self.standard.mean) / self.standard.std
        if self.kind in ("rankings", "pairs"):
            if self.dpo:
                return dpo_loss(
                    standard, targets["reference"], targets["ranks"], targets["margins"], self.beta
                )
            return pairwise_loss(standard, targets["ranks"], targets["margins"])
        loss = rating_loss if self.kind == "ratings" else label_loss
        return loss(standard, targets["targets"].to(standard.dtype))

    def train(self, mode: bool = True) -> "Learner":
        self.learned.train(mode)
        self.training = mode
        return self

    def state_dict(self, *args, **kwargs):
        return {name: value.detach() for name, value in self.learned.weights().items()}

    def load_state_dict(self, state_dict, *args, **kwargs):
        self.learned.load_weights(state_dict)
        return nn.modules.module._IncompatibleKeys([], [])


def of_rows(
    rows: Sequence[int], prompts: list[str], places: torch.Tensor, targets: Mapping[str, torch.Tensor]
) -> tuple[list[str], torch.Tensor, dict[str, torch.Tensor]]:
    """(prompts, places, targets) of some rows of a batch; `places` has each row's images after the last's."""
    ranks = targets.get("ranks")
    counts = [1] * len(prompts) if ranks is None else (ranks != NO_IMAGE).sum(1).tolist()
    parts = places.split(counts)
    kept = {name: value[list(rows)] for name, value in targets.items()}
    return [prompts[row] for row in rows], torch.cat([parts[row] for row in rows]), kept


def scores_now(
    scorer: Scorer, choices: Choices, places: Sequence[Sequence[int]], store: ImageStore
) -> list[list[float]]:
    """For each choice the scores of its images, by the scorer as it is now, without gradients."""
    flat = [(place, index) for index, found in enumerate(places) for place in found]
    scores: list[float] = []
    with torch.no_grad(), scorer.evaluating():
        for start in range(0, len(flat), SCORED_AT_ONCE):
            part = flat[start : start + SCORED_AT_ONCE]
            features = store.encoded([place for place, _ in part])
            prompts = scorer.encode_prompts([choices.items[index].prompt for _, index in part])
            scores += scorer.head(features, prompts, diagonal(len(part))).float().tolist()
    rest = iter(scores)
    return [[next(rest) for _ in found] for found in places]


def ready(
    scorer: Scorer, learned: Learned, choices: Choices, config: LearningConfig, encode_once: bool = True
) -> tuple[Learner, ChoiceData, list[list[float]]]:
    """(the learner of all choices, their data set, the base's scores of their images).

    encode_once  False: the image encoder's own weights are among what learns

    Raises InputError for an adapter on modules that a score does not call.
    """
    store = ImageStore(scorer, choices, encode_once)
    places = store.places(choices)
    enabled = _switched(learned, False)
    scores = scores_now(scorer, choices, places, store)
    _switched(learned, enabled)
    if isinstance(learned, Adapter):
        learned.check_ran()
    data, standard = prepared(choices, places, scores)
    learner = Learner(scorer, learned, store, choices.kind, standard, config.loss == "dpo", config.beta)
    return learner, data, scores


def _switched(learned: Any, on: bool) -> bool:
    """Switch an adapter on or off; returns how it was. Other weights of a scorer have no such switch."""
    before = getattr(learned, "enabled", True)
    if isinstance(learned, Adapter):
        learned.enabled = on
    return before


def prepared(
    choices: Choices, places: list[list[int]], scores: list[list[float]]
) -> tuple[ChoiceData, Standard]:
    """The data set of all choices, and the unit of its scores, from the base's `scores` of all images.

    Ratings are standardised; so an adapter learns their order and spread on the scale of the base's scores.
    """
    flat = torch.tensor([score for row in scores for score in row], dtype=torch.float64)
    spread = float(flat.std()) if len(flat) > 1 else 0.0
    standard = Standard(float(flat.mean()), spread if spread > 0 else 1.0)
    reference = [[(score - standard.mean) / standard.std for score in row] for row in scores]
    values = torch.tensor([choice.value for choice in choices.items], dtype=torch.float64)
    if choices.kind == "ratings":
        values = (values - values.mean()) / values.std()
    return ChoiceData(choices.items, places, reference, values.tolist()), standard
