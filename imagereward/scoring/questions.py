"""What each verb asks of a scorer: the (prompt, image) rows to score, and the answer made of their scores.

Shapes: M prompts, N images, P rows, each a pair of a prompt and an image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch

from imagereward.errors import InputError
from imagereward.images.reading import name_of
from imagereward.scoring.ranking import Ranking, ranks_of

# Indices are on the CPU, whatever torch's default device is.
CPU = torch.device("cpu")

Result = TypeVar("Result")


class Rows(NamedTuple):
    """The pairs to score: row p pairs images[pairs[p, 0]] with prompts[pairs[p, 1]]."""

    prompts: list[str]
    images: list
    pairs_P_2: torch.Tensor


class Scored(NamedTuple):
    """Scores [P], or [P, C] of an ensemble's components; of each prompt its tokens and whether it was cut."""

    scores: torch.Tensor
    tokens: list[int]
    truncated: list[bool]


@dataclass(frozen=True)
class Question(Generic[Result]):
    """Rows to score, and `answer`, which makes the verb's result of their scores.

    A scorer on this machine answers at once, a server's client after a request, an async client after an
    awaited one: all of them score `rows` and return `answer(scored)`.
    """

    rows: Rows

    def answer(self, scored: Scored) -> Result:
        """The verb's result."""
        raise NotImplementedError


class Scores(Question[list[float]]):
    """One score a row, in the order of the rows."""

    def answer(self, scored: Scored) -> list[float]:
        return scored.scores.tolist()


class SingleScore(Question[float]):
    """The score of the only row."""

    def answer(self, scored: Scored) -> float:
        return scored.scores.tolist()[0]


class Places(Question[tuple[list[int] | int, list[float] | float]]):
    """(places, scores): places[i] is image i's place, 1 the best; equal scores take places in list order.

    Of one image, two bare numbers, as the original implementation returns them.
    """

    def answer(self, scored: Scored) -> tuple[list[int] | int, list[float] | float]:
        scores = scored.scores
        places = torch.empty(len(scores), dtype=torch.long, device=CPU)
        places[scores.argsort(descending=True, stable=True)] = torch.arange(1, len(scores) + 1, device=CPU)
        return places.squeeze().tolist(), scores.squeeze().tolist()


@dataclass(frozen=True)
class Best(Question[list[int]]):
    """The indices of the `k` images with the highest scores, best first; equal scores in list order."""

    k: int

    def answer(self, scored: Scored) -> list[int]:
        return scored.scores.argsort(descending=True, stable=True)[: self.k].tolist()


class Matrix(Question[np.ndarray]):
    """float32 scores [M, N] of every prompt with every image; the rows are image by image."""

    def answer(self, scored: Scored) -> np.ndarray:
        images, prompts = len(self.rows.images), len(self.rows.prompts)
        return scored.scores.reshape(images, prompts).T.contiguous().numpy()


@dataclass(frozen=True)
class Ranked(Question[Ranking]):
    """A `Ranking` of one prompt's images; `model` is the name that it shows."""

    model: str

    def answer(self, scored: Scored, components: dict[str, list[float]] | None = None) -> Ranking:
        """The ranking; `components` are an ensemble's single scores, by name."""
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


def one_prompt(prompt: str, images: list) -> Rows:
    """One prompt with each of the images; InputError if it is no string."""
    if not isinstance(prompt, str):
        raise InputError(
            f"prompt is a {type(prompt).__name__}; expected one string "
            "(score_pairs and score_matrix take lists of prompts)"
        )
    places = torch.arange(len(images), device=CPU)
    pairs = torch.stack([places, torch.zeros_like(places)], 1)
    return Rows(prompt_list([prompt]), images, pairs)


def one_each(prompts: Sequence[str], images: list) -> Rows:
    """Prompt i with image i; InputError unless there are as many prompts as images."""
    prompts = prompt_list(prompts)
    if len(prompts) != len(images):
        raise InputError(
            f"{len(prompts)} prompts and {len(images)} images: score_pairs needs as many of "
            "each (score_matrix scores every prompt with every image)"
        )
    return Rows(prompts, images, diagonal(len(images)))


def every_prompt(prompts: Sequence[str], images: list) -> Rows:
    """Every prompt with every image: the rows of the first image come first."""
    prompts = prompt_list(prompts)
    pairs = torch.cartesian_prod(*(torch.arange(len(each), device=CPU) for each in (images, prompts)))
    return Rows(prompts, images, pairs.reshape(-1, 2))


def prompt_list(prompts: Iterable[str]) -> list[str]:
    """The prompts as a list; InputError naming the first that is no valid text."""
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
    """Pairs [count, 2] of equal indices: image i with prompt i."""
    return torch.arange(count, device=CPU)[:, None].expand(-1, 2)
