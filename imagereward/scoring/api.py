"""PairScorer: the base of everything that scores (prompt, image) pairs, with every verb, each written once.

Shapes: B images in a batch, M prompts, N images, P (prompt, image) rows.
"""

import inspect
import os
import warnings
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import PIL.Image
import torch

from imagereward.config import whole_number
from imagereward.errors import InputError, NonFiniteScoreError, PromptTruncatedWarning
from imagereward.images.reading import ImageLike, as_list, is_many, to_pil
from imagereward.scoring.questions import (
    Best,
    Matrix,
    Places,
    Question,
    Ranked,
    Result,
    Rows,
    Scored,
    Scores,
    SingleScore,
    every_prompt,
    one_each,
    one_prompt,
)
from imagereward.scoring.ranking import Ranking

# The images of every verb; a single image is a list of one (but for `score`, which then gives a float).
Images = ImageLike | Sequence[ImageLike]


class PairScorer:
    """A reward: a function of (prompt, image). Trainer, server and reports ask nothing else of a reward.

    A subclass defines one of two methods and has all verbs (score, rank, inference_rank, best_of,
    score_pairs, score_matrix) and `pixel_rewards`:

    - `score_pairs(prompts, images, *, batch_size=None)`, if each pair is scored for itself: a written
      verdict, an API, a function;
    - `_scored(rows, batch_size)`, if images or prompts that recur should cost once: `Scorer` (a model on
      this machine), `RemoteScorer` (a server).

    `batch_size` is the number of images that go together: through the model, or in one request.
    """

    name: str
    # Whether the gradient of `pixel_rewards` reaches the pixels.
    differentiable = False
    # Whether only one batch at a time may be scored: a model in this process, whose activations take memory.
    takes_turns = False

    def _scored(self, rows: Rows, batch_size: int | None) -> Scored:
        """Scores of the rows."""
        if type(self).score_pairs is PairScorer.score_pairs:
            raise NotImplementedError(f"{type(self).__name__} defines neither score_pairs nor _scored")
        if not rows.prompts or not rows.images:
            raise InputError(f"nothing to score: {len(rows.prompts)} prompts and {len(rows.images)} images")
        image_P, prompt_P = rows.pairs_P_2.T.tolist()
        prompts = [rows.prompts[index] for index in prompt_P]
        images = [rows.images[index] for index in image_P]
        scores = torch.tensor(self.score_pairs(prompts, images, batch_size=batch_size), dtype=torch.float32)
        if scores.shape != (len(prompts),):
            raise InputError(f"{self.name} gave scores {list(scores.shape)}; expected [{len(prompts)}]")
        if bad := (~scores.isfinite()).nonzero().flatten().tolist():
            raise NonFiniteScoreError(f"{self.name} gave {scores[bad[0]]} for {prompts[bad[0]][:40]!r}")
        return Scored(scores, [0] * len(rows.prompts), [False] * len(rows.prompts))

    def _ask(self, question: Question[Result], batch_size: int | None) -> Result:
        return question.answer(self._scored(question.rows, batch_size))

    def pixel_rewards(
        self, pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str], rows: Sequence[Any] | None = None
    ) -> torch.Tensor:
        """Rewards [B] of pixels in [0, 1], any H and W, for training a generator; NaN where one failed.

        `rows` are the requests that the prompts are of (with images, masks, metadata), for rewards that read
        them. Here: scores of the images at 8 bits, without gradient. `Scorer` is differentiable.
        """
        return torch.tensor(self.score_pairs(list(prompts), [to_pil(image) for image in pixels_B_3_H_W]))

    def summands(self) -> "tuple[dict[str, tuple[float, PairScorer]], float]":
        """({name: (weight, scorer)}, offset): the score is offset + sum of weight * the scorer's score.

        A scorer is its own only summand; an ensemble has its components.
        """
        return {self.name: (1.0, self)}, 0.0

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
        rows = one_prompt(prompt, as_list(image))
        question: Question[Any] = Scores(rows) if is_many(image) else SingleScore(rows)
        return self._ask(question, batch_size)

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
        return self._ask(Places(one_prompt(prompt, as_list(generations_list))), batch_size)

    def rank(self, prompt: str, images: Images, *, batch_size: int | None = None) -> Ranking:
        """The images in order, with rewards and ranks: prints as a table, shows itself in a notebook."""
        return self._ask(Ranked(one_prompt(prompt, as_list(images)), self.name), batch_size)

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
        return self._ask(Best(one_prompt(prompt, images), k), batch_size)

    def score_pairs(
        self,
        prompts: Sequence[str],
        images: Images,
        *,
        batch_size: int | None = None,
    ) -> list[float]:
        """N prompts with N images, one score a pair. Repeated images and prompts are encoded once."""
        return self._ask(Scores(one_each(prompts, as_list(images))), batch_size)

    def score_matrix(
        self,
        prompts: Sequence[str],
        images: Images,
        *,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """M prompts by N images: float32 array [M, N], at the price of N image passes."""
        return self._ask(Matrix(every_prompt(prompts, as_list(images))), batch_size)


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
