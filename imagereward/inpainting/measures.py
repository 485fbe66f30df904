"""Scores of one painted image: rewards on image and region, and PSNR, MSE and LPIPS outside the mask."""

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from imagereward.errors import ImageRewardError, InputError, NonFiniteScoreError, RemoteError, missing_extra
from imagereward.images.image_size import ImageSize
from imagereward.images.reading import ImageLike
from imagereward.images.row_pictures import cropped_image, cropped_mask, mask_name, open_pictures
from imagereward.rewards.inpainting import RowScorer
from imagereward.rewards.opening import by_shown_name, open_reward
from imagereward.scoring.api import PairScorer

# Measures of what lies outside the mask; lpips downloads the weights of SqueezeNet at its first use.
OUTSIDE = ("mse", "psnr", "lpips")
# The PSNR of an error of half a step of 8 bits at every pixel, 54.15 dB: the most that a summary counts.
MOST_PSNR = 20 * math.log10(2 * 255)
_MOST_STRETCH = 0.02  # relative difference of proportions up to which sizes count as rounded


class Painted(NamedTuple):
    """A painted image, the row that it was painted for, and both at the painted image's size.

    image      as it was given
    row        object with prompt, image (None: no original) and mask, for rewards
    pixels     float32 [1, 3, H, W] in [0, 1]
    original   float32 [1, 3, H, W]; None without one
    mask       float32 [1, 1, H, W] of 0 and 1
    """

    image: ImageLike
    row: Any
    pixels: torch.Tensor
    original: torch.Tensor | None
    mask: torch.Tensor


def open_painted(
    prompt: str, image: ImageLike, original: ImageLike | None, mask: ImageLike, where: str
) -> Painted:
    """Read a painted image with its original and mask, which are resized to the painted image's size.

    where   the row's name in error messages

    Raises InputError, naming the row, for pictures that are missing or unreadable, an original and a mask of
    different sizes, a mask that is empty or white everywhere, and an image of other proportions than its
    mask.
    """
    (found,) = open_pictures(SimpleNamespace(image=image), ("image",), where)
    row = SimpleNamespace(prompt=prompt, image=original, mask=mask)
    inputs = ("mask",) if original is None else ("image", "mask")
    pictures = open_pictures(row, inputs, where)
    size, own = ImageSize(found.height, found.width), pictures[-1].size
    if abs(found.width * own[1] / (found.height * own[0]) - 1) > _MOST_STRETCH:
        raise InputError(
            f"{where}: the image is {found.width}x{found.height}, its mask {own[0]}x{own[1]} pixels: "
            "expected the same proportions"
        )
    return Painted(
        image,
        SimpleNamespace(prompt=prompt, image=None if original is None else pictures[0], mask=pictures[-1]),
        cropped_image(found, size)[None],
        None if original is None else cropped_image(pictures[0], size)[None],
        cropped_mask(pictures[-1], size, mask_name(row, where))[None],
    )


def open_scorers(names: Sequence[str], device: str | None = None, **options: Any) -> dict[str, PairScorer]:
    """{shown name: reward} as `open_reward` opens them with these `options`, frozen; see `shown_name`."""
    found = {shown: open_reward(name, device, **options) for shown, name in by_shown_name(names).items()}
    if not found:
        raise InputError("no scorer: expected at least one name, such as CLIP, inside(CLIP) or boundary")
    return found


def scores_of(
    painted: Painted, scorers: Mapping[str, PairScorer]
) -> tuple[dict[str, float], dict[str, ImageRewardError]]:
    """({name: score} of the image, NaN where there is none; {name: why there is none}).

    A scorer that reads no rows scores the image as it was given, as `score_pairs` does; a reward of a region
    scores pixels, with the row. A server that gives no score (RemoteError) and a score that is not finite
    leave the other scores as they are.
    """
    found: dict[str, float] = {}
    causes: dict[str, ImageRewardError] = {}
    for name, scorer in scorers.items():
        try:
            found[name] = _score(painted, scorer)
            if not math.isfinite(found[name]):
                raise NonFiniteScoreError(f"{name} gave {found[name]}")
        except (RemoteError, NonFiniteScoreError) as error:
            found[name], causes[name] = math.nan, error
    return found, causes


def said(causes: Mapping[str, ImageRewardError]) -> str:
    """The reasons of `scores_of` as one text, "" for none."""
    return "; ".join(f"{name}: {type(error).__name__}: {error}" for name, error in causes.items())


def _score(painted: Painted, scorer: PairScorer) -> float:
    if isinstance(scorer, RowScorer) or scorer.takes_rows:
        with torch.no_grad():
            return float(scorer.pixel_rewards(painted.pixels, [painted.row.prompt], [painted.row])[0])
    return scorer.score_pairs([painted.row.prompt], [painted.image])[0]


def outside(painted: Painted, measures: Sequence[str] = ("mse", "psnr")) -> dict[str, float]:
    """Measures of `OUTSIDE` between image and original outside the mask.

    mse    mean squared error over the unmasked pixels and their three channels, of values in [0, 1]
    psnr   10 log10(1 / mse), infinite for equal pixels
    lpips  of the images whose masked pixels are the original's (Zhang et al. 2018, arXiv:1801.03924, with
           SqueezeNet), 0 for equal ones

    Raises InputError without an original; MissingExtraError without torchmetrics.
    """
    functional = torchmetrics_functional()
    if painted.original is None:
        raise InputError("measures outside the mask need the original image")
    kept = (painted.mask < 0.5).expand_as(painted.pixels)
    now, before = painted.pixels[kept], painted.original[kept]
    found = {}
    for name in measures:
        if name == "mse":
            found[name] = float(functional.mean_squared_error(now, before))
        elif name == "psnr":
            found[name] = float(functional.image.peak_signal_noise_ratio(now, before, data_range=1.0))
        elif name == "lpips":
            shown = torch.where(kept, painted.pixels, painted.original)
            found[name] = float(
                functional.image.learned_perceptual_image_patch_similarity(
                    shown, painted.original, net_type="squeeze", normalize=True
                )
            )
        else:
            raise InputError(f"measure {name!r}: expected one of {', '.join(OUTSIDE)}")
    return found


def torchmetrics_functional() -> Any:
    """The module torchmetrics.functional; MissingExtraError without torchmetrics."""
    try:
        from torchmetrics import functional
    except ImportError as error:
        raise missing_extra("PSNR, MSE and LPIPS", "integrations", error) from error
    return functional
