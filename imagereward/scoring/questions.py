"""Question: the (prompt, image) rows that a verb needs scored, and the verb's result from their scores.

Shapes: M prompts, N images, P rows, each a pair of a prompt and an image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch

from imagereward.errors import InputError, NonFiniteScoreError
from imagereward.images.reading import name_of
from imagereward.scoring.ranking import Ranking, ranks_of

# Indices are on the CPU, whatever torch's default device is.
CPU = torch.device("cpu")

Result = TypeVar("Result")


class Rows(NamedTuple):
    """P pairs to score: row p pairs images[pairs_P_2[p, 0]] with prompts[pairs_P_2[p, 1]]."""

    prompts: list[str]
    images: list
    pairs_P_2: torch.Tensor


class Scored(NamedTuple):
    """The scores of P rows with M prompts.

    scores     float32 [P] on the CPU; [P, C] for the scores of an ensemble's C components
    tokens     number of tokens of each of the M prompts, before truncation
    truncated  whether the scorer read only the beginning of each prompt
    """

    scores: torch.Tensor
    tokens: list[int]
    truncated: list[bool]


@dataclass(frozen=True)
class Question(Generic[Result]):
    """Rows to score, and `answer`, which makes the verb's result from their scores.

    Every scorer scores `rows` and returns `answer(scored)`: a model on this machine, a server's client after
    a request, and an async client after an awaited request.
    """

    rows: Rows
    # Whether the result is an order of the images, which needs a score of each.
    orders = False

    def answer(self, scored: Scored) -> Result:
        """The verb's result from the scores of `rows`."""
        raise NotImplementedError


class Scores(Question[list[float]]):
    """The scores as a list, in the order of the rows."""

    def answer(self, scored: Scored) -> list[float]:
        return scored.scores.tolist()


class SingleScore(Question[float]):
    """The score of the only row."""

    def answer(self, scored: Scored) -> float:
        return scored.scores.tolist()[0]


class Places(Question[tuple[list[int] | int, list[float] | float]]):
    """(places, scores): places[i] is image i's place, 1 for the best; equal scores get places in list order.

    One image gives a number each instead of two lists, as in the original implementation.
    """

    orders = True

    def answer(self, scored: Scored) -> tuple[list[int] | int, list[float] | float]:
        scores = scored.scores
        places = torch.empty(len(scores), dtype=torch.long, device=CPU)
        places[scores.argsort(descending=True, stable=True)] = torch.arange(1, len(scores) + 1, device=CPU)
        return places.squeeze().tolist(), scores.squeeze().tolist()


@dataclass(frozen=True)
class Best(Question[list[int]]):
    """The indices of the `k` images with the highest scores, best first; equal scores in list order."""

    k: int
    orders = True

    def answer(self, scored: Scored) -> list[int]:
        return scored.scores.argsort(descending=True, stable=True)[: self.k].tolist()


class Matrix(Question[np.ndarray]):
    """float32 scores [M, N] of every prompt with every image, from rows in the order of `every_prompt`."""

    def answer(self, scored: Scored) -> np.ndarray:
        images, prompts = len(self.rows.images), len(self.rows.prompts)
        return scored.scores.reshape(images, prompts).T.contiguous().numpy()


@dataclass(frozen=True)
class Ranked(Question[Ranking]):
    """A `Ranking` of one prompt's images; `model` is the scorer's name in it."""

    model: str
    orders = True

    def answer(self, scored: Scored, components: dict[str, list[float]] | None = None) -> Ranking:
        """The ranking; `components` are the scores of an ensemble's components by name."""
        rewards = scored.scores.tolist()
        return Ranking(
            prompt=self.rows.prompts[0],
            images=self.rows.images,
            names=[name_of(image, index) for index, image in enumerate(self.rows.images)],
            rewards=rewards,
            ranks=ranks_of(rewards),
            model=self.model,
            tokens=scored.tokens[0],
            truncated=scored.truncated[0],
            components=components or {},
        )


def require_order(name: str, question: Question, scores: torch.Tensor) -> None:
    """Raises NonFiniteScoreError if the question asks for an order, and a score is NaN."""
    count = int(scores.isnan().sum())
    if count and question.orders:
        raise NonFiniteScoreError(
            f"{name} gave no verdict on {count} of {len(scores)} images, so they have no order; score gives "
            "NaN for these"
        )


def one_prompt(prompt: str, images: list) -> Rows:
    """Rows of one prompt with each image; InputError if the prompt is no string."""
    if not isinstance(prompt, str):
        raise InputError(
            f"prompt is a {type(prompt).__name__}; expected one string "
            "(score_pairs and score_matrix take lists of prompts)"
        )
    places = torch.arange(len(images), device=CPU)
    pairs = torch.stack([places, torch.zeros_like(places)], 1)
    return Rows(prompt_list([prompt]), images, pairs)


def one_each(prompts: Sequence[str], images: list) -> Rows:
    """Rows of prompt i with image i; InputError unless there are as many prompts as images."""
    prompts = prompt_list(prompts)
    if len(prompts) != len(images):
        raise InputError(
            f"{len(prompts)} prompts and {len(images)} images: score_pairs needs as many of "
            "each (score_matrix scores every prompt with every image)"
        )
    return Rows(prompts, images, diagonal(len(images)))


def every_prompt(prompts: Sequence[str], images: list) -> Rows:
    """Rows of every prompt with every image: all prompts with the first image, then with the second, …"""
    prompts = prompt_list(prompts)
    pairs = torch.cartesian_prod(*(torch.arange(len(each), device=CPU) for each in (images, prompts)))
    return Rows(prompts, images, pairs.reshape(-1, 2))


def prompt_list(prompts: Iterable[str]) -> list[str]:
    """The prompts as a list; InputError naming the first prompt that is no string or no valid Unicode."""
    if isinstance(prompts, str) or not isinstance(prompts, Iterable):
        raise InputError(f"prompts is a {type(prompts).__name__}; expected a list of strings")
    prompts = list(prompts)
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise InputError(f"prompts[{index}] is a {type(prompt).__name__}; expected a string")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"prompts[{index}] is not valid text: {error}") from error
    return prompts


def diagonal(count: int) -> torch.Tensor:
    """Index pairs [count, 2] of image i with prompt i, for i = 0..count - 1."""
    return torch.arange(count, device=CPU)[:, None].expand(-1, 2)
