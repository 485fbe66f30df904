"""The verbs, once: what people ask, as rows of (prompt, image) pairs, and what becomes of the rows' scores.

Whoever can score rows has every verb by defining `_scored`: a model on this machine (`Scorer`), a
server (`RemoteScorer`), or a server that is awaited, where each verb returns an awaitable.
Shapes: M prompts, N images, P (prompt, image) pairs.
"""

import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar, overload

import numpy as np
import PIL.Image
import torch

from imagereward.config import whole_number
from imagereward.errors import InputError, PromptTruncatedWarning
from imagereward.images.reading import ImageLike, as_list, is_many, name_of
from imagereward.scoring.ranking import Ranking, ranks_of

# Where indices are, whatever torch's default device is.
CPU = torch.device("cpu")

Result = TypeVar("Result")
# What every verb but `score` takes as its images; a single image is a list of one.
Images = ImageLike | Sequence[ImageLike]


class Rows(NamedTuple):
    """What to score: row p pairs images[pairs[p, 0]] with prompts[pairs[p, 1]]."""

    prompts: list[str]
    images: list
    pairs_P_2: torch.Tensor


class Scored(NamedTuple):
    """Scores [P], or [P, C] of an ensemble's parts; and of each prompt its tokens and whether it was cut."""

    scores: torch.Tensor
    tokens: list[int]
    truncated: list[bool]


class Verbs:
    """score, rank, inference_rank, best_of, score_pairs and score_matrix, over one method, `_scored`.

    `batch_size` is the number of images that go together: through the model, or in one request.
    """

    name: str

    def _scored(self, rows: Rows, batch_size: int | None, finish: Callable[[Scored], Result]) -> Result:
        """`finish` of what scoring the rows gives."""
        raise NotImplementedError

    @overload
    def score(  # type: ignore[overload-overlap]  # a str is a sequence of str, but as an image it is a path
        self,
        prompt: str,
        image: str | os.PathLike | bytes | PIL.Image.Image,
        *,
        batch_size: int | None = None,
    ) -> float: ...

    @overload
    def score(
        self, prompt: str, image: Sequence[ImageLike], *, batch_size: int | None = None
    ) -> list[float]: ...

    @overload
    def score(
        self, prompt: str, image: np.ndarray | torch.Tensor, *, batch_size: int | None = None
    ) -> float | list[float]: ...

    @overload
    def score(
        self, prompt: str, image: ImageLike | Sequence[ImageLike], *, batch_size: int | None = None
    ) -> float | list[float]: ...

    def score(
        self, prompt: str, image: ImageLike | Sequence[ImageLike], *, batch_size: int | None = None
    ) -> float | list[float]:
        """How well each image answers the prompt; higher is better.

        One image gives a float. Several give a list of the same length: a list, a tuple, or an array or
        tensor of four dimensions. The registry has the range of each scorer.
        """
        many = is_many(image)

        def finish(scored: Scored) -> float | list[float]:
            scores = scored.scores.tolist()
            return scores if many else scores[0]

        return self._scored(one_prompt(prompt, as_list(image)), batch_size, finish)

    def inference_rank(
        self,
        prompt: str,
        generations_list: Images,
        *,
        batch_size: int | None = None,
    ) -> tuple[list[int] | int, list[float] | float]:
        """(ranking, rewards) as the original returns them: ranking[i] is image i's place, 1 the best.

        As there, a list of one image gives two bare numbers. Equal scores get consecutive places in
        list order; `rank` lets them share one.
        """

        def finish(scored: Scored) -> tuple[list[int] | int, list[float] | float]:
            scores = scored.scores
            places = torch.empty(len(scores), dtype=torch.long, device=CPU)
            places[scores.argsort(descending=True, stable=True)] = torch.arange(
                1, len(scores) + 1, device=CPU
            )
            return places.squeeze().tolist(), scores.squeeze().tolist()

        return self._scored(one_prompt(prompt, as_list(generations_list)), batch_size, finish)

    def rank(self, prompt: str, images: Images, *, batch_size: int | None = None) -> Ranking:
        """The images in order, with rewards and ranks: prints as a table, shows itself in a notebook."""
        rows = one_prompt(prompt, as_list(images))
        return self._scored(rows, batch_size, lambda scored: self._ranking(rows, scored))

    def best_of(
        self,
        prompt: str,
        images: Images,
        k: int = 1,
        *,
        batch_size: int | None = None,
    ) -> list[int]:
        """Indices of the k best images, best first."""
        images = as_list(images)
        k = whole_number("k", k, 1, max(1, len(images)))

        def finish(scored: Scored) -> list[int]:
            return scored.scores.argsort(descending=True, stable=True)[:k].tolist()

        return self._scored(one_prompt(prompt, images), batch_size, finish)

    def score_pairs(
        self,
        prompts: Sequence[str],
        images: Images,
        *,
        batch_size: int | None = None,
    ) -> list[float]:
        """N prompts with N images, one score a pair. Repeated images and prompts are encoded once."""
        prompts, images = prompt_list(prompts), as_list(images)
        if len(prompts) != len(images):
            raise InputError(
                f"{len(prompts)} prompts and {len(images)} images: score_pairs needs as many of "
                "each (score_matrix scores every prompt with every image)"
            )
        rows = Rows(prompts, images, diagonal(len(images)))
        return self._scored(rows, batch_size, lambda scored: scored.scores.tolist())

    def score_matrix(
        self,
        prompts: Sequence[str],
        images: Images,
        *,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """M prompts by N images: float32 array [M, N], at the price of N image passes."""
        prompts, images = prompt_list(prompts), as_list(images)
        pairs = torch.cartesian_prod(*(torch.arange(len(each), device=CPU) for each in (images, prompts)))

        def finish(scored: Scored) -> np.ndarray:
            return scored.scores.reshape(len(images), len(prompts)).T.contiguous().numpy()

        return self._scored(Rows(prompts, images, pairs.reshape(-1, 2)), batch_size, finish)

    def _ranking(self, rows: Rows, scored: Scored, **extra) -> Ranking:
        rewards = scored.scores.tolist()
        return Ranking(
            prompt=rows.prompts[0],
            images=rows.images,
            names=[name_of(image, index) for index, image in enumerate(rows.images)],
            rewards=rewards,
            ranks=ranks_of(rewards),
            model=self.name,
            tokens=scored.tokens[0],
            truncated=scored.truncated[0],
            **extra,
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


def warn_truncated(name: str, truncated: list[bool], remedy: str, limit: str | None = None) -> None:
    """A PromptTruncatedWarning at the caller's line, if any prompt was cut.

    `limit` says how much is read ("the 35 tokens that CLIP reads"), where that is known.
    """
    if count := sum(truncated):
        verb = "is" if len(truncated) == 1 else "are"
        warnings.warn(
            f"{count} of {len(truncated)} prompts {verb} longer than {limit or f'{name} reads'}; only the "
            f"beginning was scored ({remedy})",
            PromptTruncatedWarning,
            stacklevel=_level_of_caller(),
        )


def _level_of_caller() -> int:
    """The `stacklevel` with which a warning points at the first frame outside this package."""
    frame, level = inspect.currentframe(), 0
    while frame and frame.f_globals.get("__name__", "").startswith("imagereward."):
        frame, level = frame.f_back, level + 1
    return level
