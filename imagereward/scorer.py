"""Scorer: every public verb, written once for all models.

A model says three things: what depends on the image alone (`encode_images`), what depends on the
prompt alone (`encode_prompts`), and how the two make scores (`head`). From these come all verbs.
Shapes: B images in a batch, M prompts, N images, P (prompt, image) pairs.
"""

import contextlib
import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from imagereward.config import ScorerConfig, whole_number
from imagereward.engine import check_finite, score_rows
from imagereward.errors import InputError, PromptTruncatedWarning
from imagereward.images import ImageLike, Preprocess, as_list, full_precision, is_many, name_of
from imagereward.ranking import Ranking, ranks_of
from imagereward.saving import push, save

# Images a batch where the caller does not say: a CPU is busy with few, an accelerator wants many.
DEFAULT_BATCH = {"cpu": 8}
DEFAULT_BATCH_ACCELERATOR = 64
MOST_AT_ONCE = 2**20
# How far pixels may lie outside [0, 1] before they are taken for another range altogether.
PIXEL_SLACK = 0.01


class Scorer(nn.Module):
    """A reward: a function of (prompt, image). Subclasses define the three methods and no verbs.

    Every verb takes `batch_size`, the number of images in one pass of the model. Every verb raises,
    before the model runs, InputError (nothing to score, unequal lengths, a prompt that is no string),
    ImageNotFound, ImageReadError or ImageTypeError naming the image; and NonFiniteScoreError for
    scores that are NaN or infinite. All headers are checked first; of more than 512 images, those
    beyond are decoded while the model runs, so damage inside one is found when its turn comes.
    A prompt that is longer than the model reads is cut, with a PromptTruncatedWarning.
    """

    # Parameters under these prefixes stay float32 whatever the dtype of the rest.
    float32_prefixes = ("mlp.", "clip_model.logit_scale")
    # Weights under these prefixes are those that `encode_images` uses: what its features are good for.
    image_prefixes: tuple[str, ...] = ("",)

    def __init__(self, config: ScorerConfig):
        super().__init__()
        self.config = config
        self.name = config.kind
        self.preprocess: Preprocess = config.preprocess
        self.files: dict[str, Path] = {}  # key prefix -> the file that holds those weights

    # What a model defines.

    def encode_images(self, pixels: torch.Tensor):
        """Normalised float32 [B, 3, S, S] to features whose first axis is B: what a cache would keep."""
        raise NotImplementedError

    def encode_prompts(self, prompts: list[str]):
        """M prompts to features, or tokens, whose first axis is M."""
        raise NotImplementedError

    def head(self, image_features, prompt_features, pairs_P_2: torch.Tensor) -> torch.Tensor:
        """float32 scores [P]; row p pairs image `pairs[p, 0]` with prompt `pairs[p, 1]` (CPU indices)."""
        raise NotImplementedError

    def forward(self, pixels_B_3_S_S, prompts: list[str], pairs_P_2: torch.Tensor) -> torch.Tensor:
        """Scores [P] of pixels that are already of the model's size: uint8, or float in [0, 1].

        For training the scorer itself: gradients reach whatever weights are not frozen, and dropout
        follows the module's mode. Row p pairs image `pairs[p, 0]` with prompt `pairs[p, 1]`.
        """
        return self.head(self.encode_pixels([pixels_B_3_S_S]), self.encode_prompts(prompts), pairs_P_2)

    def count_tokens(self, prompts: list[str]) -> list[int]:
        """Tokens per prompt before truncation, special tokens included; 0 if prompts are not read."""
        raise NotImplementedError

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass of `reward`: slower, far less memory."""
        raise NotImplementedError

    def compile_towers(self) -> None:
        """Put the towers through torch.compile, in place."""
        raise NotImplementedError

    def image_key(self) -> tuple:
        """Equal for two scorers whose `encode_images` gives the same features."""
        return (id(self),)

    def truncated(self, prompts: list[str]) -> list[bool]:
        """Whether each prompt is longer than the model reads."""
        return [tokens > self.config.max_length for tokens in self.count_tokens(prompts)]

    @property
    def preprocesses(self) -> tuple[Preprocess, ...]:
        """One per batch of pixels that `encode_images` takes."""
        return (self.preprocess,)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The towers' dtype; what `head` returns is float32, or float64 for float64 towers."""
        return next(self.parameters()).dtype

    # The verbs.

    def score(
        self, prompt: str, image: ImageLike | Sequence[ImageLike], *, batch_size: int | None = None
    ) -> float | list[float]:
        """How well each image answers the prompt; higher is better.

        One image gives a float, a list gives a list of the same length. Ranges: see the registry.
        """
        scores = self._one_prompt(prompt, as_list(image), batch_size).tolist()
        return scores if is_many(image) else scores[0]

    def inference_rank(
        self,
        prompt: str,
        generations_list: Sequence[ImageLike],
        *,
        batch_size: int | None = None,
    ) -> tuple[list[int] | int, list[float] | float]:
        """(ranking, rewards) as the original returns them: ranking[i] is image i's place, 1 the best.

        As there, a list of one image gives two bare numbers. Equal scores get consecutive places in
        list order; `rank` lets them share one.
        """
        scores = self._one_prompt(prompt, as_list(generations_list), batch_size)
        places = torch.empty(len(scores), dtype=torch.long)
        places[scores.argsort(descending=True, stable=True)] = torch.arange(1, len(scores) + 1)
        return places.squeeze().tolist(), scores.squeeze().tolist()

    def rank(self, prompt: str, images: Sequence[ImageLike], *, batch_size: int | None = None) -> Ranking:
        """The images in order, with rewards and ranks: prints as a table, shows itself in a notebook."""
        images = as_list(images)
        return self._ranking(prompt, images, self._one_prompt(prompt, images, batch_size).tolist())

    def best_of(
        self,
        prompt: str,
        images: Sequence[ImageLike],
        k: int = 1,
        *,
        batch_size: int | None = None,
    ) -> list[int]:
        """Indices of the k best images, best first."""
        images = as_list(images)
        k = whole_number("k", k, 1, max(1, len(images)))
        scores = self._one_prompt(prompt, images, batch_size)
        return scores.argsort(descending=True, stable=True)[:k].tolist()

    def score_pairs(
        self,
        prompts: Sequence[str],
        images: Sequence[ImageLike],
        *,
        batch_size: int | None = None,
    ) -> list[float]:
        """N prompts with N images, one score a pair. Repeated images and prompts are encoded once."""
        prompts, images = _prompt_list(prompts), as_list(images)
        if len(prompts) != len(images):
            raise InputError(
                f"{len(prompts)} prompts and {len(images)} images: score_pairs needs as many of "
                "each (score_matrix scores every prompt with every image)"
            )
        return self._score_rows(prompts, images, _diagonal(len(images)), batch_size, self.head).tolist()

    def score_matrix(
        self,
        prompts: Sequence[str],
        images: Sequence[ImageLike],
        *,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """M prompts by N images: float32 array [M, N], at the price of N image passes."""
        prompts, images = _prompt_list(prompts), as_list(images)
        pairs = torch.cartesian_prod(torch.arange(len(images)), torch.arange(len(prompts)))
        scores = self._score_rows(prompts, images, pairs.reshape(-1, 2), batch_size, self.head)
        return scores.reshape(len(images), len(prompts)).T.contiguous().numpy()

    def reward(
        self,
        pixels_B_3_H_W: torch.Tensor,
        prompts: str | Sequence[str],
        *,
        batch_size: int | None = None,
    ) -> torch.Tensor:
        """Scores [B] of RGB pixels in [0, 1], any H and W; gradients reach the pixels.

        float32, or float64 from a float64 scorer. `prompts` are B strings, or one for all. Resizing is
        antialiased. On smooth pictures the result differs from what `score` gives for the same image
        as a file by 8-bit rounding; pixel noise, which Pillow clips between its two passes, can
        differ by more. Weights loaded by `load` are frozen, so only the pixels gather gradients.
        """
        pixels = pixels_B_3_H_W
        if not isinstance(pixels, torch.Tensor):
            raise InputError(f"pixels are a {type(pixels).__name__}; expected a tensor [B, 3, H, W]")
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise InputError(
                f"pixels are {pixels.dtype} {tuple(pixels.shape)}; expected float [B, 3, H, W] in [0, 1]"
            )
        count = len(pixels)
        prompts = [prompts] * count if isinstance(prompts, str) else _prompt_list(prompts)
        if not pixels.numel():
            raise InputError(f"pixels are empty: {tuple(pixels.shape)}")
        if len(prompts) != count:
            raise InputError(f"{len(prompts)} prompts for {count} images; expected one each")
        low, high = pixels.detach().aminmax()
        if not (low >= -PIXEL_SLACK and high <= 1 + PIXEL_SLACK):  # NaN fails both
            raise InputError(f"pixels are in [{low:.3g}, {high:.3g}]; expected [0, 1]")
        self._warn_truncated(list(dict.fromkeys(prompts)))
        size = self._batch_size(batch_size)
        parts = []
        with self.evaluating():
            for start in range(0, count, size):
                part = pixels[start : start + size].to(self.device)
                features = self.encode_pixels([p.resize(full_precision(part)) for p in self.preprocesses])
                encoded = self.encode_prompts(prompts[start : start + size])
                parts.append(self.head(features, encoded, _diagonal(len(part))))
        rewards = torch.cat(parts)
        check_finite(self.name, rewards, lambda row: f"image {row} with {prompts[row][:40]!r}")
        return rewards

    # Saving.

    def save_pretrained(self, directory: str | os.PathLike) -> Path:
        """Write `model.safetensors` and `config.json`, which `imagereward.load(directory)` reads.

        Each file is replaced in one step, so an interrupted save leaves the previous one whole.
        """
        return save(self, directory)

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None, message: str = ""
    ) -> str:
        """Upload what `save_pretrained` writes to a hub repository, made if need be; returns its URL."""
        return push(self, repo_id, private, token, message or f"{self.name}, saved by imagereward")

    # What the verbs share.

    def _one_prompt(
        self, prompt: str, images: list, batch_size: int | None, head: Callable | None = None
    ) -> torch.Tensor:
        if not isinstance(prompt, str):
            raise InputError(
                f"prompt is a {type(prompt).__name__}; expected one string "
                "(score_pairs and score_matrix take lists of prompts)"
            )
        pairs = torch.stack([torch.arange(len(images)), torch.zeros(len(images))], 1).long()
        return self._score_rows(_prompt_list([prompt]), images, pairs, batch_size, head or self.head)

    def _score_rows(
        self, prompts: list[str], images: list, pairs_P_2, batch_size: int | None, head: Callable
    ) -> torch.Tensor:
        self._warn_truncated(prompts)
        return score_rows(self, prompts, images, pairs_P_2, self._batch_size(batch_size), head)

    def encode_pixels(self, batches: list[torch.Tensor]):
        """Pixels in [0, 1] (or 8-bit), one batch per preprocess, to image features."""
        return self.encode_images(
            *(
                preprocess.normalize(batch.to(self.device, non_blocking=True))
                for preprocess, batch in zip(self.preprocesses, batches, strict=True)
            )
        )

    def _ranking(self, prompt: str, images: list, rewards: list[float], **extra) -> Ranking:
        return Ranking(
            prompt=prompt,
            images=images,
            names=[name_of(image, index) for index, image in enumerate(images)],
            rewards=rewards,
            ranks=ranks_of(rewards),
            model=self.name,
            tokens=self.count_tokens([prompt])[0],
            truncated=self.truncated([prompt])[0],
            **extra,
        )

    def _batch_size(self, batch_size: int | None) -> int:
        if batch_size is None:
            return DEFAULT_BATCH.get(self.device.type, DEFAULT_BATCH_ACCELERATOR)
        return whole_number("batch_size", batch_size, 1, MOST_AT_ONCE)

    def _warn_truncated(self, prompts: list[str]) -> None:
        count = sum(self.truncated(prompts))
        if count:
            warnings.warn(
                f"{count} of {len(prompts)} prompts are longer than {self.name} reads; only the "
                "beginning was scored (`max_length=` in load() raises the limit where the model has room)",
                PromptTruncatedWarning,
                stacklevel=_level_of_caller(),
            )

    @contextlib.contextmanager
    def evaluating(self):
        """Dropout off while scoring, whatever mode a training loop left the model in.

        A model in training mode must not be scored from several threads: the mode is its own.
        """
        modes = [(module, module.training) for module in self.modules() if module.training]
        self.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def _prompt_list(prompts: Iterable[str]) -> list[str]:
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


def _level_of_caller() -> int:
    """The `stacklevel` with which a warning points at the first frame outside this package."""
    frame, level = inspect.currentframe(), 0
    while frame and frame.f_globals.get("__name__", "").startswith("imagereward."):
        frame, level = frame.f_back, level + 1
    return level


def _diagonal(count: int) -> torch.Tensor:
    return torch.arange(count)[:, None].expand(-1, 2)
