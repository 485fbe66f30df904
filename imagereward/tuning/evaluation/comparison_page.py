"""Renders a comparison of two generators as one self-contained HTML page."""

from typing import Any

from imagereward.images.reading import to_pil
from imagereward.pages import render
from imagereward.scoring.ranking import thumbnail
from imagereward.tuning.data.requests import Row
from imagereward.tuning.evaluation.comparison import Comparison


def page(comparison: Comparison, names: tuple[str, str] = ("base", "tuned")) -> str:
    """An HTML page without external files: the numbers, and each pair of images with their rewards.

    names  how the page calls the base and the tuned generator
    """
    rewards = comparison.before, comparison.after
    return render(
        "comparison.html",
        comparison=comparison,
        names=names,
        rows=comparison.rows(),
        drawn=list(zip(names, comparison.images, rewards, strict=True)),
        given=[_given(row) for row in comparison.pictures_of],
        thumbnail=thumbnail,
        pixels_thumbnail=lambda pixels_3_H_W: thumbnail(to_pil(pixels_3_H_W)),
    )


def _given(row: Row) -> dict[str, Any]:
    """The pictures that a row brings, by name: its image and its mask; empty for a prompt."""
    pictures = {name: getattr(row, name, None) for name in ("image", "mask")}
    return {name: picture for name, picture in pictures.items() if picture is not None}
