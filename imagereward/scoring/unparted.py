"""as_scorer: makes a `Scorer` of any `PairScorer`, for bulk scoring, ensembles and the server.

They decode images themselves and ask a scorer for features. A function, a judge behind an API or a server
has no features: it is given the decoded images and the prompts together, in the wrapper's `head`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from imagereward.config import ScorerConfig
from imagereward.errors import InputError, RemoteError
from imagereward.images.processor import Processor
from imagereward.scoring.api import PairScorer
from imagereward.scoring.scorer import Scorer

log = logging.getLogger(__name__)


def as_scorer(scorer: PairScorer, device: torch.device | str = "cpu") -> Scorer:
    """The scorer itself if it is a `Scorer`, else an `UnpartedScorer` with scores on `device`.

    Raises InputError for a scorer that compares the images of one call, which callers divide into batches.
    """
    if isinstance(scorer, Scorer):
        return scorer
    if scorer.relative:
        raise InputError(
            f"{scorer.name!r} scores an image relative to the others of the same call, so its scores of "
            "several calls cannot be put together: call its rank() with all images of a prompt"
        )
    return UnpartedScorer(scorer, torch.device(device))


@dataclass(frozen=True)
class WholeImages(Processor):
    """Images in RGB at their own size, uint8: 3 bytes a pixel.

    The server holds all images that wait (`serve.Limits.decoded` bounds their bytes), bulk scoring those of
    about two parts.
    """

    def load(self, image: PIL.Image.Image) -> dict[str, torch.Tensor]:
        """{"rgb": uint8 [H, W, 3]}."""
        return {"rgb": torch.from_numpy(np.array(image.convert("RGB")))}

    def collate(self, items: Sequence[dict[str, torch.Tensor]]) -> dict[str, list[PIL.Image.Image]]:
        """{"images": Pillow images}."""
        return {"images": [PIL.Image.fromarray(item["rgb"].numpy()) for item in items]}

    def from_pixels(self, pixels_B_3_H_W: torch.Tensor) -> dict[str, torch.Tensor]:
        """{"images": the pixels}."""
        return {"images": pixels_B_3_H_W}


class UnpartedScorer(Scorer):
    """A `PairScorer` as a `Scorer`: it has no features, tokens or weights of its own.

    Image features are the images (Pillow, or pixels for `reward`), prompt features the prompts; `head` calls
    `score_pairs`, or `pixel_rewards` for pixels. No prompt counts as cut: `count_tokens` is 0.
    """

    _place: torch.Tensor  # empty, on the device of the scores

    def __init__(self, inner: PairScorer, device: torch.device):
        super().__init__(ScorerConfig("Unparted"))
        self.inner, self.name = inner, inner.name
        self.takes_turns, self.takes_rows = inner.takes_turns, inner.takes_rows
        self.may_be_nan = inner.may_be_nan
        self.processor = WholeImages()
        self.files = dict(inner.files)
        self.register_buffer("_place", torch.empty(0, device=device), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where scores are put."""
        return self._place.device

    @property
    def dtype(self) -> torch.dtype:
        """float32, the scores' dtype."""
        return torch.float32

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether the gradient of the inner scorer's `pixel_rewards` reaches the pixels."""
        return self.inner.differentiable

    def encode_images(self, batch: dict[str, Any]) -> Any:
        """The images of the batch."""
        return batch["images"]

    def encode_prompts(self, prompts: list[str]) -> list[str]:
        """The prompts."""
        return prompts

    def head(self, images: Any, prompts: Sequence[str], pairs_P_2: torch.Tensor) -> torch.Tensor:
        """float32 scores [P]; InputError if the inner scorer gives another number of scores than P."""
        image_P, prompt_P = pairs_P_2.T.tolist()
        texts = [prompts[index] for index in prompt_P]
        if isinstance(images, torch.Tensor):
            scores = self.inner.pixel_rewards(images[image_P], texts)
        else:
            scores = self._of_pairs(texts, [images[index] for index in image_P])
        if scores.shape != (len(texts),):
            raise InputError(f"{self.name} gave scores {list(scores.shape)}; expected [{len(texts)}]")
        return scores.to(self.device, torch.float32)

    def _of_pairs(self, prompts: list[str], images: list[PIL.Image.Image]) -> torch.Tensor:
        """Scores [P], NaN where a remote scorer gave none.

        RemoteError if it gave none at all, unless it refused each pair for its content: a server that is gone
        should end a run, and a pair that is refused every time should not.
        """
        try:
            return torch.tensor(self.inner.score_pairs(prompts, images))
        except RemoteError as error:
            none = error.scores is None or not bool(torch.as_tensor(error.scores).isfinite().any())
            if error.scores is None or (none and not error.permanent):
                raise
            log.warning("%s", error)
            return torch.as_tensor(error.scores)

    def count_tokens(self, prompts: list[str]) -> list[int]:
        return [0] * len(prompts)

    def image_vectors(self, features: Any) -> torch.Tensor:
        """Raises InputError: there are no features."""
        raise InputError(f"{self.name} scores pairs alone and has no features of images to compare")

    def image_key(self) -> tuple:
        return (id(self.inner),)

    def pixel_rewards(
        self, pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str], rows: Sequence[Any] | None = None
    ) -> torch.Tensor:
        """The inner scorer's."""
        return self.inner.pixel_rewards(pixels_B_3_H_W, prompts, rows)

    def row_weights(self, rows: Sequence[Any], size: tuple[int, int]) -> torch.Tensor | None:
        """The inner scorer's."""
        return self.inner.row_weights(rows, size)

    def plan(self, rows: int, characters: int | None = None) -> str:
        """The inner scorer's."""
        return self.inner.plan(rows, characters)

    def prompt_fault(self, prompt: str) -> str | None:
        """The inner scorer's."""
        return self.inner.prompt_fault(prompt)

    def summands(self) -> tuple[dict[str, tuple[float, PairScorer]], float]:
        """The inner scorer's."""
        return self.inner.summands()

    def save_pretrained(self, directory: Any) -> Path:
        """Raises InputError: there are no weights."""
        raise InputError(f"{self.name} has no weights to save")

    def _input_size(self) -> tuple[str, ...]:
        return ()
