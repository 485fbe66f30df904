"""Ensemble: a scorer whose score is the weighted sum of several scorers' scores."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import cast

import torch
from torch import nn

from imagereward.checkpoints.loading import load
from imagereward.config import ScorerConfig
from imagereward.errors import InputError, listing
from imagereward.images.preprocess import Preprocess
from imagereward.images.processor import Processor
from imagereward.images.reading import as_list
from imagereward.lookup import is_reference
from imagereward.scoring.api import Images, PairScorer
from imagereward.scoring.questions import Ranked, Rows, Scored, one_prompt, require_order
from imagereward.scoring.ranking import Ranking
from imagereward.scoring.scorer import Scorer
from imagereward.scoring.unparted import as_scorer


def ensemble(
    weights: Mapping[str | os.PathLike | PairScorer, float],
    normalise: Mapping[str | os.PathLike | PairScorer, tuple[float, float]] | None = None,
    **load_options,
) -> "Ensemble":
    """A scorer with the score sum_k weight_k * (score_k - mean_k) / std_k of its components k.

    weights       {name: weight}; a name is anything that `load` takes, or a scorer that is loaded already
    normalise     {name: (mean, std)}, with std > 0; default: mean 0 and std 1
    load_options  arguments of `load` for every name

    Every image is decoded once for all components, and encoded once for those that share a tower
    (CLIP and Aesthetic). A component that is no `Scorer`, such as a function or a judge behind an API, gets
    the images at their own size. Raises InputError for an empty mapping, weights that are not numbers, a
    `normalise` key that is no component, components on different devices, or one that compares the images
    of a call with each other.
    """
    if not isinstance(weights, Mapping) or not weights:
        raise InputError("an ensemble needs at least one component, as {name: weight}")
    keys = list(weights)
    numbers = {key: weight for key, weight in weights.items() if isinstance(weight, Real)}
    if bad := [str(key) for key in keys if key not in numbers or not math.isfinite(numbers[key])]:
        raise InputError(f"the weights of {bad} are not finite numbers")
    normalise = dict(normalise or {})
    if strangers := [str(key) for key in normalise if key not in weights]:
        raise InputError(f"normalise names {strangers}, which are not among the components")
    shifts = [_mean_and_std(key, normalise.get(key, (0.0, 1.0))) for key in keys]
    loaded = {key: load(key, **load_options) for key in keys if not isinstance(key, PairScorer)}
    found: list[PairScorer] = [key if isinstance(key, PairScorer) else loaded[key] for key in keys]
    # A scorer of one's own may have other weights than the file it began with.
    released = [each for key, each in loaded.items() if not is_reference(os.fspath(key))]
    _share_towers([each for each in released if isinstance(each, Scorer)])
    devices = [each.device for each in found if isinstance(each, Scorer)]
    scorers = [as_scorer(each, devices[0] if devices else "cpu") for each in found]
    return Ensemble(scorers, [float(numbers[key]) for key in keys], shifts)


def _mean_and_std(key, shift) -> tuple[float, float]:
    try:
        mean, std = (float(value) for value in shift)
    except (TypeError, ValueError):
        mean = std = math.nan
    if not (math.isfinite(mean) and 0 < std < math.inf):
        raise InputError(f"normalise[{str(key)!r}] is {shift!r}; expected (mean, std) with std > 0")
    return mean, std


class Ensemble(Scorer):
    """The scorer that `ensemble` makes.

    scorers  the C components, on the same device
    weights  a weight for each component
    shifts   (mean, std) for each component

    `score_components` gives the components' scores; `rank` shows them as columns.
    """

    def __init__(self, scorers: Sequence[Scorer], weights, shifts):
        if len(devices := {scorer.device for scorer in scorers}) > 1:
            raise InputError(f"the components are on different devices: {sorted(map(str, devices))}")
        super().__init__(ScorerConfig("Ensemble"))
        self.parts = nn.ModuleList(scorers)
        self.names = _distinct_names(scorers)
        self.files = {
            f"{name}:{part}": path
            for name, scorer in zip(self.names, scorers)
            for part, path in scorer.files.items()
        }
        self.name = " + ".join(f"{weight:g} {name}" for weight, name in zip(weights, self.names))
        self.weights = weights
        self.shifts = shifts
        self._processors = tuple(dict.fromkeys(each for scorer in scorers for each in scorer.processors))
        self.pairs_per_forward = min(scorer.pairs_per_forward for scorer in scorers)
        # Scorers with equal keys have the same image features, which the first of them computes for all.
        keys = [scorer.image_key() for scorer in scorers]
        distinct = list(dict.fromkeys(keys))
        self._encoders = [keys.index(key) for key in distinct]
        self._features_of = [distinct.index(key) for key in keys]

    @property
    def scorers(self) -> list[Scorer]:
        """The components, in the order of the weights."""
        return cast(list[Scorer], list(self.parts))

    @property
    def processors(self) -> tuple[Processor, ...]:
        return self._processors

    @property
    def encoders(self) -> list[Scorer]:
        """The components that encode images, without those that share another's image features."""
        return [self.scorers[index] for index in self._encoders]

    @property
    def device(self) -> torch.device:
        """The components' device."""
        return self.scorers[0].device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first component."""
        return self.scorers[0].dtype

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether all components are."""
        return all(scorer.differentiable for scorer in self.scorers)

    @property
    def may_be_nan(self) -> bool:  # type: ignore[override]
        """Whether a component's score may be."""
        return any(scorer.may_be_nan for scorer in self.scorers)

    def check_scores(self, scores: torch.Tensor, describe: Callable[[int], str]) -> None:
        """As each component checks its own, of scores [P, C]; sums [P] may be NaN if a component's may."""
        if scores.ndim == 1:
            super().check_scores(scores, describe)
            return
        for scorer, column in zip(self.scorers, scores.T, strict=True):
            scorer.check_scores(column, describe)

    def encode_images(self, *pixels: torch.Tensor) -> tuple:
        of = dict(zip(self._processors, pixels))
        return tuple(
            scorer.encode_images(*(of[each] for each in scorer.processors)) for scorer in self.encoders
        )

    def image_vectors(self, features) -> torch.Tensor:
        """float32 [B, W]: those of the first image encoder."""
        return self.encoders[0].image_vectors(features[0])

    def encode_prompts(self, prompts: list[str]) -> tuple:
        return tuple(scorer.encode_prompts(prompts) for scorer in self.scorers)

    def head(self, image_features, prompt_features, pairs_P_2):
        return self._weighted(self.heads(image_features, prompt_features, pairs_P_2))

    def heads(self, image_features, prompt_features, pairs_P_2) -> torch.Tensor:
        """The components' scores [P, C], before weights and normalisation."""
        return torch.stack(
            [
                scorer.head(image_features[place], prompts, pairs_P_2)
                for scorer, place, prompts in zip(self.scorers, self._features_of, prompt_features)
            ],
            dim=1,
        )

    def score_components(
        self, prompt: str, images: Images, *, batch_size: int | None = None
    ) -> dict[str, list[float]]:
        """{component: scores of the images, in their order}, before weights and normalisation."""
        rows = one_prompt(prompt, as_list(images))
        return self._by_name(self._scored(rows, batch_size, head=self.heads))

    def rank(self, prompt: str, images: Images, *, batch_size: int | None = None) -> Ranking:
        question = Ranked(one_prompt(prompt, as_list(images)), self.name)
        scored = self._scored(question.rows, batch_size, head=self.heads)
        total = scored._replace(scores=self._weighted(scored.scores))
        require_order(self.name, question, total.scores)
        return question.answer(total, self._by_name(scored))

    def summands(self) -> tuple[dict[str, tuple[float, PairScorer]], float]:
        summands: dict[str, tuple[float, PairScorer]] = {}
        offset = 0.0
        for name, scorer, weight, (mean, std) in zip(
            self.names, self.scorers, self.weights, self.shifts, strict=True
        ):
            summands[name] = (weight / std, scorer)
            offset -= weight * mean / std
        return summands, offset

    def _scored(self, rows: Rows, batch_size: int | None, *, head: Callable | None = None) -> Scored:
        """The sums [P], or what `head` gives; each component's scores are checked before they are added."""
        scored = super()._scored(rows, batch_size, head=head or self.heads)
        return scored if head else scored._replace(scores=self._weighted(scored.scores))

    def _by_name(self, scored: Scored) -> dict[str, list[float]]:
        return {name: column.tolist() for name, column in zip(self.names, scored.scores.T)}

    def count_tokens(self, prompts: list[str]) -> list[int]:
        return self.reading(prompts)[0]

    def reading(self, prompts: list[str]) -> tuple[list[int], list[bool]]:
        tokens, truncated = zip(*(scorer.reading(prompts) for scorer in self.scorers))
        return [max(counts) for counts in zip(*tokens)], [any(flags) for flags in zip(*truncated)]

    def prompt_fault(self, prompt: str) -> str | None:
        """The first component's fault, if any has one."""
        return next((fault for scorer in self.scorers if (fault := scorer.prompt_fault(prompt))), None)

    def token_limits(self) -> dict[str, int]:
        limits: dict[str, int] = {}
        for name, scorer in zip(self.names, self.scorers):
            inner = scorer.token_limits()
            limits |= {name: inner[scorer.name]} if list(inner) == [scorer.name] else inner
        return limits

    def _input_size(self) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys(
                f"{each.size} x {each.size} pixels"
                for each in self.processors
                if isinstance(each, Preprocess)
            )
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for scorer in self.scorers:
            scorer.set_grad_checkpointing(enable)

    def compile_towers(self) -> None:
        for scorer in self.encoders:
            scorer.compile_towers()

    def add_adapter(self, adapter, *, name: str | None = None, scale: float | None = None):
        raise InputError(
            "an ensemble has no adapters of its own: give it a component as NAME+ADAPTER, or put them on its "
            "components, in `.scorers`, where these share no tower"
        )

    def save_pretrained(self, directory: str | os.PathLike):
        raise InputError("an ensemble has no weights of its own: save its components, in `.scorers`")

    def _weighted(self, scores_P_C: torch.Tensor) -> torch.Tensor:
        means, stds = scores_P_C.new_tensor(self.shifts).unbind(1)
        return ((scores_P_C - means) / stds * scores_P_C.new_tensor(self.weights)).sum(1)


def _share_towers(scorers: Sequence[Scorer]) -> None:
    """Let newly loaded CLIP scorers with the same file and dtype share one tower, in place.

    Adapters of one would change the others, so the tower then takes none.
    """
    sharing: dict = {}
    for scorer in scorers:
        if (file := scorer.files.get("clip_model.")) and not len(scorer.adapters):
            sharing.setdefault((file, scorer.dtype), []).append(scorer)
    for first, *others in sharing.values():
        for scorer in others:
            scorer.clip_model = first.clip_model
        for scorer in (first, *others) if others else ():
            names = [each.name for each in (first, *others) if each is not scorer]
            scorer.adapters.shared = {"clip_model.": listing(names)}


def _distinct_names(scorers: Sequence[Scorer]) -> list[str]:
    names = [scorer.name for scorer in scorers]
    return [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]
