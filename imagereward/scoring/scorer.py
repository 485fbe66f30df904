"""Scorer: the base class of models on this machine, with all verbs, and scores with gradients.

A model defines `encode_images` (features of images alone), `encode_prompts` (features of prompts alone),
`head` (scores of pairs of features) and `count_tokens`. The verbs of `PairScorer`, and `reward`, use these.
Shapes: B images in a batch, M prompts, N images, P (prompt, image) pairs.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imagereward.adapters.base import Adapter
from imagereward.adapters.collection import Adapters
from imagereward.adapters.streams import TokenStream
from imagereward.config import ScorerConfig, whole_number
from imagereward.errors import InputError
from imagereward.images.preprocess import Preprocess
from imagereward.images.processor import Processor
from imagereward.precision import full_precision, on_cpu
from imagereward.scoring.adapted import Source, add_adapter, check_ran, remove_adapter
from imagereward.scoring.api import PairScorer, warn_truncated
from imagereward.scoring.pair_scoring import check_finite, check_pixels, score_rows
from imagereward.scoring.questions import Rows, Scored, diagonal, prompt_list
from imagereward.scoring.saving import save
from imagereward.uploading import push

# Default images in a batch: few keep a CPU busy, a GPU needs many.
DEFAULT_BATCH = {"cpu": 8}
DEFAULT_BATCH_ACCELERATOR = 64
MOST_AT_ONCE = 2**20  # largest batch_size


class Scorer(PairScorer, nn.Module):
    """A model that scores (prompt, image) pairs. Subclasses define the four methods and no verbs.

    Every verb takes `batch_size`, the number of images in one pass of the model; default 8 on a CPU, else 64.
    Before the model runs, every verb raises InputError (nothing to score, unequal lengths, a prompt that is
    no string), ImageNotFound, ImageReadError or ImageTypeError naming the image. It raises
    NonFiniteScoreError for scores that are NaN or infinite. The headers of all images are checked first. Of
    more than 512 images, the later ones are decoded while the model runs, so damage inside them is found
    only then. A prompt that is longer than the model reads is cut, with a PromptTruncatedWarning.
    """

    takes_turns = True
    # Most pairs in one call of `head`; bounds memory when few images are scored with many prompts.
    pairs_per_forward = 512
    # Parameters under these prefixes stay float32 whatever the dtype of the rest.
    float32_prefixes: tuple[str, ...] = ("mlp.", "clip_model.logit_scale")
    # Prefixes of the weights that `encode_images` uses; its cached features are valid for these weights.
    image_prefixes: tuple[str, ...] = ("",)

    def __init__(self, config: ScorerConfig):
        super().__init__()
        self.config = config
        self.name = config.kind
        self.preprocess: Preprocess = config.preprocess
        self.processor: Processor = config.preprocess
        self.files: dict[str, Path] = {}  # key prefix -> the file that holds those weights
        self.adapters = Adapters()

    # The methods that a model defines.

    def encode_images(self, pixels):
        """Features of a batch of B images; their first axis is B.

        pixels  the batch as `processor.on_device` gives it: of a `Preprocess`, normalised float32
                [B, 3, S, S]
        """
        raise NotImplementedError

    def encode_prompts(self, prompts: list[str]):
        """Features, or tokens, of M prompts; their first axis is M."""
        raise NotImplementedError

    def head(self, image_features, prompt_features, pairs_P_2: torch.Tensor) -> torch.Tensor:
        """float32 scores [P] of pairs of features.

        pairs_P_2  on the CPU: row p pairs image pairs[p, 0] with prompt pairs[p, 1]
        """
        raise NotImplementedError

    def count_tokens(self, prompts: list[str]) -> list[int]:
        """Tokens of each prompt before truncation, with special tokens; 0 for scorers without a prompt."""
        raise NotImplementedError

    def forward(self, pixels_B_3_S_S, prompts: list[str], pairs_P_2: torch.Tensor) -> torch.Tensor:
        """Scores [P] of pixels of the model's own size: uint8, or float in [0, 1].

        For training the scorer: weights that are not frozen get gradients, and dropout follows the module's
        mode. Row p pairs image pairs[p, 0] with prompt pairs[p, 1].
        """
        return self.head(self.encode_pixels([pixels_B_3_S_S]), self.encode_prompts(prompts), pairs_P_2)

    def init_buffers(self) -> None:
        """Make the buffers that no checkpoint holds, on the CPU. Default: there are none.

        Loading builds a scorer on the meta device, and then fills in parameters and saved buffers. Buffers
        registered with `persistent=False`, such as rotary frequencies, have no values until this is called.
        """

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let the backward pass of `reward` recompute activations. Default: InputError, as not possible."""
        raise InputError(f"{self.name} cannot recompute activations; train without checkpointing")

    def compile_towers(self) -> None:
        """Compile the towers with torch.compile, in place; InputError with adapters. Default: InputError."""
        raise InputError(f"{self.name} names no towers to compile; load it without compile=True")

    def token_streams(self) -> dict[str, TokenStream]:
        """The tokens on their way through each tower, "text" and "image", for adapters. Default: none."""
        return {}

    def image_vectors(self, features: Any) -> torch.Tensor:
        """float32 [B, W], a vector for each image of `encode_images`: the mean over tokens, if it has any.

        For comparing images with each other, as the diversity of a generator's images is measured.
        """
        return features.float().flatten(1, -2).mean(1) if features.ndim > 2 else features.float()

    def image_key(self) -> tuple:
        """A key that is equal for two scorers whose `encode_images` gives the same features."""
        return (id(self),)

    def truncated(self, prompts: list[str]) -> list[bool]:
        """Whether each prompt is longer than the model reads."""
        return self.reading(prompts)[1]

    def reading(self, prompts: list[str]) -> tuple[list[int], list[bool]]:
        """(`count_tokens`, `truncated`), with the prompts tokenised once."""
        tokens = self.count_tokens(prompts)
        return tokens, [count > self.config.max_length for count in tokens]

    def stream_lengths(self, prompts: list[str]) -> list[int]:
        """How many real tokens, at least, each prompt has in the stream "text", as positions count them."""
        return [max(1, min(count, self.config.max_length)) for count in self.count_tokens(prompts)]

    def __repr__(self) -> str:
        """Name, kind, device, dtype and input size; `torch.nn.Module.__repr__(scorer)` lists the layers."""
        parameter = next(self.parameters(), None)
        where = () if parameter is None else (str(parameter.device), str(parameter.dtype)[len("torch.") :])
        return f"<{self.name}: {', '.join((self.config.kind, *where, *self._input_size()))}>"

    def _input_size(self) -> tuple[str, ...]:
        tokens = f"{self.config.max_length} tokens"
        if self.processor is not self.preprocess:
            return (tokens,)
        return f"{self.preprocess.size} x {self.preprocess.size} pixels", tokens

    @property
    def processors(self) -> tuple[Processor, ...]:
        """The processors of images, one for each argument of `encode_images`."""
        return (self.processor,)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether `reward` exists: all processors take pixels differentiably."""
        return all(processor.differentiable for processor in self.processors)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The towers' dtype; scores are float32, or float64 for float64 towers."""
        return next(self.parameters()).dtype

    # The verb that only a model on this machine has.

    def reward(
        self,
        pixels_B_3_H_W: torch.Tensor,
        prompts: str | Sequence[str],
        *,
        batch_size: int | None = None,
    ) -> torch.Tensor:
        """Scores [B] of RGB pixels in [0, 1], any H and W; gradients reach the pixels.

        pixels_B_3_H_W  float pixels; resized to the model's size with antialiasing
        prompts         B strings, or one string for all images
        batch_size      images in one pass of the model

        Scores are float32, or float64 for float64 towers. On smooth images they differ from `score` of the
        same image as a file by 8-bit rounding; on noisy images by more, because Pillow clips between its two
        passes. `load` freezes weights, so only the pixels get gradients. Raises InputError for other shapes,
        dtypes or ranges; NonFiniteScoreError for scores that are NaN or infinite.
        """
        pixels = pixels_B_3_H_W
        check_pixels(pixels)
        count = len(pixels)
        prompts = [prompts] * count if isinstance(prompts, str) else prompt_list(prompts)
        if len(prompts) != count:
            raise InputError(f"{len(prompts)} prompts for {count} images; expected one each")
        self._warn_truncated(*self.reading(list(dict.fromkeys(prompts))))
        parts, size = [], self._batch_size(batch_size)
        with self.evaluating(), on_cpu():
            for start in range(0, count, size):
                part = pixels[start : start + size].to(self.device)
                features = self.encode_pixels([p.from_pixels(full_precision(part)) for p in self.processors])
                encoded = self.encode_prompts(prompts[start : start + size])
                parts.append(self.head(features, encoded, diagonal(len(part))))
        check_ran(self, encoded=True)
        rewards = torch.cat(parts)
        check_finite(self.name, rewards, lambda row: f"image {row} with {prompts[row][:40]!r}")
        return rewards

    def pixel_rewards(
        self, pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str], rows: Sequence[Any] | None = None
    ) -> torch.Tensor:
        """`reward`, with gradients, if the processors are differentiable; else scores without gradient."""
        if self.differentiable:
            return self.reward(pixels_B_3_H_W, prompts)
        return super().pixel_rewards(pixels_B_3_H_W, prompts, rows)

    def add_adapter(self, adapter: Source, *, name: str | None = None, scale: float | None = None) -> Adapter:
        """Put a saved adapter (its directory) or a new one (its config) on this scorer; see `add_adapter`."""
        return add_adapter(self, adapter, name, scale)

    def remove_adapter(self, name: str) -> None:
        """Take an adapter off; InputError if it is not on this scorer."""
        remove_adapter(self, name)

    def using_adapters(self, *names: str, **scales: float) -> contextlib.AbstractContextManager[None]:
        """A context in which only these adapters have an effect, or none; see `Adapters.using`."""
        return self.adapters.using(*names, **scales)

    def save_pretrained(self, directory: str | os.PathLike) -> Path:
        """Write `model.safetensors` and `config.json`, which `imagereward.load(directory)` reads.

        An interrupted save leaves the previous files intact; see `save`.
        """
        return save(self, directory)

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None, message: str = ""
    ) -> str:
        """Upload the files of `save_pretrained` to a hub repository, created if missing; returns its URL."""
        return push(self, repo_id, private, token, message or f"{self.name}, saved by imagereward")

    # Shared by the verbs.

    def _scored(self, rows: Rows, batch_size: int | None, *, head: Callable | None = None) -> Scored:
        with on_cpu():
            tokens, truncated = self.reading(rows.prompts)
            self._warn_truncated(tokens, truncated)
            scores = score_rows(self, *rows, self._batch_size(batch_size), head or self.head)
            return Scored(scores, tokens, truncated)

    def check_scores(self, scores: torch.Tensor, describe: Callable[[int], str]) -> None:
        """Raises NonFiniteScoreError for an infinite score, and for NaN unless the scorer `may_be_nan`.

        describe  names a row by its index
        """
        check_finite(self.name, scores.nan_to_num(nan=0.0) if self.may_be_nan else scores, describe)

    def encode_pixels(self, batches: list[Any]):
        """The image features of a batch for each processor, as from its `collate` or `from_pixels`."""
        device = self.device
        inputs = [each.on_device(batch, device) for each, batch in zip(self.processors, batches, strict=True)]
        return self.encode_images(*inputs)

    def _batch_size(self, batch_size: int | None) -> int:
        if batch_size is None:
            return DEFAULT_BATCH.get(self.device.type, DEFAULT_BATCH_ACCELERATOR)
        return whole_number("batch_size", batch_size, 1, MOST_AT_ONCE)

    def _warn_truncated(self, tokens: list[int], truncated: list[bool]) -> None:
        longest = max((count for count, cut in zip(tokens, truncated) if cut), default=0)
        remedy = (
            f"the longest has {longest} tokens; max_length= in load() raises the limit, up to 512 for BLIP "
            "kinds and 77 for CLIP kinds"
        )
        limits = self.token_limits()
        read = " and ".join(f"the {limit} tokens that {name} reads" for name, limit in limits.items())
        warn_truncated(self.name, truncated, remedy, read)

    def token_limits(self) -> dict[str, int]:
        """{scorer's name: tokens of a prompt that it reads}; of an ensemble, by its components' names."""
        return {self.name: self.config.max_length}

    @contextlib.contextmanager
    def evaluating(self):
        """A context with the model in eval mode; afterwards each module has its own mode again.

        Do not score a model in training mode from several threads, because they share its mode.
        """
        modes = [(module, module.training) for module in self.modules() if module.training]
        if modes:
            self.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
