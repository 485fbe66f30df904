"""FunctionScorer: makes a scorer of a function of (pixels, prompts)."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from imagereward.errors import InputError
from imagereward.images.reading import as_list, read_image
from imagereward.scoring.api import Images, PairScorer
from imagereward.scoring.questions import one_each

# (pixels [B, 3, H, W] in [0, 1], prompts) -> rewards [B].
RewardFunction = Callable[..., torch.Tensor]


class FunctionScorer(PairScorer):
    """A scorer whose scores are `function(pixels [B, 3, H, W] in [0, 1], prompts) -> rewards [B]`.

    function  with a parameter `rows`, it also gets the requests (prompt, image, mask, metadata) in training
    name      default: the function's name

    `differentiable` is True for every function; `Rewards.check_differentiable` tries the gradient.
    """

    differentiable = True

    def __init__(self, function: RewardFunction, name: str | None = None):
        if not callable(function):
            raise InputError(f"a reward is a {type(function).__name__}; expected a function")
        self.function = function
        self.name = str(name or getattr(function, "__name__", type(function).__name__))
        self.takes_rows = "rows" in (_parameters(function) or ())

    def pixel_rewards(
        self, pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str], rows: Sequence[Any] | None = None
    ) -> torch.Tensor:
        """The function's rewards [B]; a function with a parameter `rows` gets the requests."""
        more = {"rows": rows} if self.takes_rows and rows is not None else {}
        return self.function(pixels_B_3_H_W, list(prompts), **more)

    def score_pairs(
        self, prompts: Sequence[str], images: Images, *, batch_size: int | None = None
    ) -> list[float]:
        """N scores, of prompt i with image i. The function is called image by image, as sizes may differ."""
        rows = one_each(prompts, as_list(images))
        with torch.no_grad():
            return [
                float(self.pixel_rewards(_pixels(image, index), [prompt]))
                for index, (prompt, image) in enumerate(zip(rows.prompts, rows.images))
            ]


def is_reward_function(found: Any) -> bool:
    """Whether a callable takes (pixels, prompts), and not nothing or a device, to make a scorer.

    That is: it is no class, and has a required parameter beside `device`.
    """
    parameters = _parameters(found)
    if parameters is None:  # built in
        return True
    required = [
        name
        for name, each in parameters.items()
        if each.default is each.empty and each.kind is not each.VAR_KEYWORD and name != "device"
    ]
    return not isinstance(found, type) and bool(required)


def _parameters(function: Callable) -> dict[str, inspect.Parameter] | None:
    """The parameters by name; None for a built-in function without a signature."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None


def _pixels(image: Any, index: int) -> torch.Tensor:
    """An image of any kind as pixels [1, 3, H, W] in [0, 1]."""
    array = np.array(read_image(image, index).convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255
