"""PairScorer: the base class of all scorers of (prompt, image) pairs, with the verbs that they share.

Shapes: B images in a batch, M prompts, N images, P (prompt, image) rows.
"""

import inspect
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import numpy as np
import PIL.Image
import torch

from imagereward.config import whole_number
from imagereward.errors import InputError, NonFiniteScoreError, PromptTruncatedWarning
from imagereward.images.reading import ImageLike, as_list, is_many, name_of, to_pil
from imagereward.scoring.questions import (
    CPU,
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
    require_order,
)
from imagereward.scoring.ranking import Ranking

# The type of every verb's images. A single image counts as a list of one; only `score` then gives a float.
Images = ImageLike | Sequence[ImageLike]


class PairScorer:
    """A reward: a function of (prompt, image). Trainer, server and reports use this interface alone.

    A subclass defines one of two methods, and then has all verbs (score, rank, inference_rank, best_of,
    score_pairs, score_matrix) and `pixel_rewards`:

    - `score_pairs(prompts, images, *, batch_size=None)`, if pairs are scored one by one: by a function, an
      API, or a language model that judges images;
    - `_scored(rows, batch_size)`, if a repeated image or prompt should be encoded only once: `Scorer` (a
      model on this machine), `RemoteScorer` (a server).

    `name` is the scorer's name in tables and messages. `batch_size` is the number of images in one pass of
    the model, or in one request.
    """

    name: str
    # The files that decide the scores, by a name for each; bulk scoring notices a change of them.
    files: Mapping[str, Path] = MappingProxyType({})
    # Whether the gradient of `pixel_rewards` reaches the pixels.
    differentiable = False
    # Whether scores have gradients in the scorer's own weights, from which an adapter can learn.
    passes_gradients = True
    # Whether a score depends on the other images of the call, as a win rate does.
    relative = False
    # Whether `pixel_rewards` reads the pictures or metadata of `rows`.
    takes_rows = False
    # Whether NaN may stand for a score: where a text holds no verdict. Anywhere else NaN is an error.
    may_be_nan = False
    # Whether only one batch at a time may be scored, as for a model in this process, to save memory.
    takes_turns = False

    def _scored(self, rows: Rows, batch_size: int | None) -> Scored:
        """Scores [P] of the rows, here by `score_pairs`.

        Raises InputError for nothing to score, and for scores of another shape; NonFiniteScoreError for an
        infinite score, and for NaN unless the scorer `may_be_nan`.
        """
        if type(self).score_pairs is PairScorer.score_pairs:
            raise NotImplementedError(f"{type(self).__name__} defines neither score_pairs nor _scored")
        if not rows.prompts or not rows.images:
            raise InputError(f"nothing to score: {len(rows.prompts)} prompts and {len(rows.images)} images")
        image_P, prompt_P = rows.pairs_P_2.T.tolist()
        prompts = [rows.prompts[index] for index in prompt_P]
        images = [rows.images[index] for index in image_P]
        found = self.score_pairs(prompts, images, batch_size=batch_size)
        scores = torch.tensor(found, dtype=torch.float32, device=CPU)
        if scores.shape != (len(prompts),):
            raise InputError(f"{self.name} gave scores {list(scores.shape)}; expected [{len(prompts)}]")
        wrong = scores.isinf() if self.may_be_nan else ~scores.isfinite()
        if bad := wrong.nonzero().flatten().tolist():
            image = image_P[bad[0]]
            raise NonFiniteScoreError(
                f"{self.name} gave {len(bad)} scores that are not finite, the first, {scores[bad[0]]}, for "
                f"{name_of(rows.images[image], image)} with {prompts[bad[0]][:40]!r}; expected finite numbers"
            )
        return Scored(scores, [0] * len(rows.prompts), [False] * len(rows.prompts))

    def _ask(self, question: Question[Result], batch_size: int | None) -> Result:
        scored = self._scored(question.rows, batch_size)
        require_order(self.name, question, scored.scores)
        return question.answer(scored)

    def pixel_rewards(
        self, pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str], rows: Sequence[Any] | None = None
    ) -> torch.Tensor:
        """Rewards [B] of pixels in [0, 1], any H and W, for training a generator; NaN where a reward failed.

        rows  the prompts' requests, with their images, masks and metadata, for rewards that read them

        This implementation scores the images, rounded to 8 bits, without gradient. `Scorer`'s has gradients.
        """
        return torch.tensor(self.score_pairs(list(prompts), [to_pil(image) for image in pixels_B_3_H_W]))

    def row_weights(self, rows: Sequence[Any], size: tuple[int, int]) -> torch.Tensor | None:
        """A factor [N] of the reward's weight in a sum for each row; None: 1 for all, as here.

        rows  the requests of N images
        size  (height, width) of the images in pixels
        """
        return None

    def plan(self, rows: int, characters: int | None = None) -> str:
        """What scoring so many pairs asks for and costs, in words; "" for a model that runs here.

        characters  of all prompts together, as `len` counts them; None: not known
        """
        return ""

    def prompt_fault(self, prompt: str) -> str | None:
        """Why no image can be scored with this prompt, in words; None (as here): it can be.

        It becomes the error of a table's row. A judge with a file of questions may have none for a prompt.
        """
        return None

    def summands(self) -> "tuple[dict[str, tuple[float, PairScorer]], float]":
        """({name: (weight, scorer)}, offset), with score = offset + sum of weight * the scorer's score.

        The only summand is the scorer itself; an ensemble's summands are its components.
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
        """How well each image fits the prompt; higher is better. `REGISTRY` has the range of each scorer.

        One image gives a float. A list, a tuple, or an array or tensor of four dimensions, gives a list of
        floats, one for each image.
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
        """(ranking, rewards) as the original implementation returns them; ranking[i] is image i's place.

        Place 1 is the best. Equal scores get consecutive places in list order; with `rank` they share a
        rank. One image gives a number each instead of two lists, as in the original.
        """
        return self._ask(Places(one_prompt(prompt, as_list(generations_list))), batch_size)

    def rank(self, prompt: str, images: Images, *, batch_size: int | None = None) -> Ranking:
        """A `Ranking` of the images, which prints as a table, and shows thumbnails in a notebook."""
        return self._ask(Ranked(one_prompt(prompt, as_list(images)), self.name), batch_size)

    def best_of(
        self,
        prompt: str,
        images: Images,
        k: int = 1,
        *,
        batch_size: int | None = None,
    ) -> list[int]:
        """Indices of the k images with the highest scores, best first; k is in 1..number of images."""
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
        """N scores: of prompt i with image i, for N prompts and N images.

        A scorer that encodes images and prompts encodes repeated ones only once.
        """
        return self._ask(Scores(one_each(prompts, as_list(images))), batch_size)

    def score_matrix(
        self,
        prompts: Sequence[str],
        images: Images,
        *,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Scores float32 [M, N] of every prompt with every image; each image is encoded once."""
        return self._ask(Matrix(every_prompt(prompts, as_list(images))), batch_size)


def warn_truncated(name: str, truncated: list[bool], remedy: str, limit: str | None = None) -> None:
    """Warns with PromptTruncatedWarning, at the line of the caller outside this package, if a prompt was cut.

    name       the scorer's name
    truncated  whether each prompt was cut
    remedy     what the user can do, for the message
    limit      the length that is read, such as "the 35 tokens that CLIP reads"; default: unknown
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
    """The `stacklevel` of `warnings.warn` for the first frame outside this package."""
    frame, level = inspect.currentframe(), 0
    while frame and frame.f_globals.get("__name__", "").startswith("imagereward."):
        frame, level = frame.f_back, level + 1
    return level
