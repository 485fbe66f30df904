"""Rewards of inpainting as scorers: inside the mask, at its boundary, outside it, and weighted by its share.

They read the mask, and some the original image, of the `rows` that `pixel_rewards` gets: any objects with
attributes `prompt`, `image` and `mask`. The row's pictures are cropped to the pixels' size as a generator's
condition is. Each raises InputError, naming the row, for a mask that is missing, empty, white everywhere or
of another size than its image.
"""

from collections.abc import Sequence
from typing import Any

import torch

from imagereward.errors import InputError, RemoteError
from imagereward.images.image_size import ImageSize
from imagereward.images.row_pictures import image_at, mask_at, name_row
from imagereward.rewards.region import boundary_score, bounding_box, grown, outside_distance
from imagereward.scoring.api import Images, PairScorer

DEFAULT_LEAST = 224  # least side in pixels of the part of an image that a scorer without a size is shown


class RowScorer(PairScorer):
    """A scorer of pixels and rows with pictures; it has no verbs, which know prompts and images alone."""

    differentiable = True
    takes_rows = True

    def score_pairs(
        self, prompts: Sequence[str], images: Images, *, batch_size: int | None = None
    ) -> list[float]:
        """Raises InputError: the verbs know no masks."""
        raise InputError(
            f"{self.name} reads the mask of a row: expected rows with an image and a mask, as tune, compare "
            "and score-table take them"
        )


class Boundary(RowScorer):
    """`region.boundary_score`: -|edges just inside the mask - edges just outside it|; differentiable."""

    name = "boundary"

    def pixel_rewards(
        self, pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str], rows: Sequence[Any] | None = None
    ) -> torch.Tensor:
        """Rewards [B], at most 0."""
        return boundary_score(pixels_B_3_H_W, masks_of(self.name, pixels_B_3_H_W, rows))


class Preservation(RowScorer):
    """Minus `region.outside_distance`: how far the image moved outside the mask; differentiable.

    A generator with an autoencoder never reaches 0: the reconstruction of the original moves, too.
    """

    name = "preservation"

    def pixel_rewards(
        self, pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str], rows: Sequence[Any] | None = None
    ) -> torch.Tensor:
        """Rewards [B], in [-1, 0]."""
        masks = masks_of(self.name, pixels_B_3_H_W, rows)
        size = ImageSize(*pixels_B_3_H_W.shape[-2:])
        seen = _once(rows or (), lambda row, where: image_at(row, size, where))
        return -outside_distance(pixels_B_3_H_W, seen.to(pixels_B_3_H_W), masks)


class AroundScorer(RowScorer):
    """A reward computed from the rewards of another scorer, `scorer`.

    Its `differentiable`, `takes_turns`, `relative`, `may_be_nan`, `row_weights` and `files` are the scorer's.
    """

    def __init__(self, scorer: PairScorer, name: str):
        self.scorer, self.name, self.files = scorer, name, scorer.files

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether the scorer's gradient reaches the pixels."""
        return self.scorer.differentiable

    @property
    def takes_turns(self) -> bool:  # type: ignore[override]
        """As the scorer."""
        return self.scorer.takes_turns

    def row_weights(self, rows: Sequence[Any], size: tuple[int, int]) -> torch.Tensor | None:
        """The scorer's, which a reward of its values keeps."""
        return self.scorer.row_weights(rows, size)

    @property
    def relative(self) -> bool:  # type: ignore[override]
        """As the scorer."""
        return self.scorer.relative

    @property
    def may_be_nan(self) -> bool:  # type: ignore[override]
        """As the scorer."""
        return self.scorer.may_be_nan


class InsideMask(AroundScorer):
    """Another scorer's score of the mask's bounding box.

    scorer   any scorer that reads no rows, since a row's mask and image are of the whole image. Its gradient
             reaches the pixels of the box
    least    the box is grown to at least so many pixels a side, within the image; default: the side of the
             scorer's input, 224 for a scorer without one
    name     default: inside(NAME)

    Raises InputError for a scorer that reads rows.
    """

    def __init__(self, scorer: PairScorer, least: int | None = None, name: str | None = None):
        super().__init__(scorer, name or f"inside({scorer.name})")
        if scorer.takes_rows:
            raise InputError(
                f"{self.name}: {scorer.name} reads the mask or other pictures of a row, which are of the "
                "whole image, and would see a crop of it; expected a scorer of images, such as inside(CLIP)"
            )
        self.least = least or least_of(scorer)

    def pixel_rewards(
        self, pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str], rows: Sequence[Any] | None = None
    ) -> torch.Tensor:
        """The scorer's rewards [B] of the boxes; boxes of one size are scored together.

        NaN where a remote scorer failed; its RemoteError is raised if it gave no reward at all.
        """
        masks = masks_of(self.name, pixels_B_3_H_W, rows)
        size = (pixels_B_3_H_W.shape[-2], pixels_B_3_H_W.shape[-1])
        boxes = [grown(bounding_box(mask[0]), self.least, size) for mask in masks]
        of_size: dict[tuple[int, int], list[int]] = {}
        for index, box in enumerate(boxes):
            of_size.setdefault(box.size, []).append(index)
        rewards: list[torch.Tensor] = [torch.empty(0)] * len(boxes)
        failed: RemoteError | None = None
        for members in of_size.values():
            crops = [
                pixels_B_3_H_W[i, :, boxes[i].top : boxes[i].bottom, boxes[i].left : boxes[i].right]
                for i in members
            ]
            asked = [prompts[i] for i in members], [(rows or ())[i] for i in members]
            try:
                found = self.scorer.pixel_rewards(torch.stack(crops), *asked)
            except RemoteError as error:
                failed, found = error, torch.full((len(members),), torch.nan)
            for i, reward in zip(members, found, strict=True):
                rewards[i] = reward
        if failed is not None and not torch.stack(rewards).isfinite().any():
            raise failed
        return torch.stack(rewards)


class ShareWeighted(AroundScorer):
    """Another reward whose weight in a sum is, row by row, the mask's share m of the image, or 1 - m.

    scorer   any reward; its own values are what is logged, and, with advantages_of="each", standardised. A
             weight of its own is multiplied
    rest     False: the weight is m; True: 1 - m

    With the names "mask_share(...)" and "rest_share(...)" and rewards standardised in their groups, the sum
    m (z(hps) + z(clip)) + (1 - m) z(boundary) is three rewards of weight 1.
    """

    def __init__(self, scorer: PairScorer, rest: bool = False):
        super().__init__(scorer, f"{'rest_share' if rest else 'mask_share'}({scorer.name})")
        self.rest = rest
        self.takes_rows = scorer.takes_rows

    def pixel_rewards(
        self, pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str], rows: Sequence[Any] | None = None
    ) -> torch.Tensor:
        """The scorer's rewards [B], without the weight."""
        return self.scorer.pixel_rewards(pixels_B_3_H_W, prompts, rows)

    def row_weights(self, rows: Sequence[Any], size: tuple[int, int]) -> torch.Tensor:
        """[N] float64 in (0, 1): each row's m or 1 - m, at (height, width) of the generated image, times the
        scorer's own weight."""
        masks = _once(rows, lambda row, where: mask_at(row, ImageSize(*size), where))
        share = masks.double().mean((1, 2, 3))
        weight = 1 - share if self.rest else share
        inner = super().row_weights(rows, size)
        return weight if inner is None else weight * inner.to(weight)


def least_of(scorer: PairScorer) -> int:
    """The side in pixels to which a box is grown: that of the scorer's input, 224 for one without a size."""
    return getattr(getattr(scorer, "preprocess", None), "size", None) or DEFAULT_LEAST


def masks_of(name: str, pixels_B_3_H_W: torch.Tensor, rows: Sequence[Any] | None) -> torch.Tensor:
    """The rows' masks [B, 1, H, W] of 0 and 1 at the pixels' size, on their device and in their dtype.

    name   the reward's, for the error for rows that are missing
    """
    if rows is None or len(rows) != len(pixels_B_3_H_W):
        raise InputError(
            f"{name} reads the mask of each row: expected {len(pixels_B_3_H_W)} rows with an image and a mask"
        )
    size = ImageSize(*pixels_B_3_H_W.shape[-2:])
    return _once(rows, lambda row, where: mask_at(row, size, where)).to(pixels_B_3_H_W)


def _once(rows: Sequence[Any], read: Any) -> torch.Tensor:
    """`read(row, its name)` of every row, stacked; a row that comes again is read once."""
    found: dict[int, torch.Tensor] = {}
    for index, row in enumerate(rows):
        if id(row) not in found:
            found[id(row)] = read(row, name_row(row, index))
    return torch.stack([found[id(row)] for row in rows])
