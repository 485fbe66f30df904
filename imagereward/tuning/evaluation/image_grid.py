"""Lays images out in a grid with labels, as one picture to look at."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

from imagereward.images.reading import to_pil

LABEL_HEIGHT = 16
LETTER_WIDTH = 6
GAP = 4
LEAST_SIDE = 128  # pixels of width that a heading needs


def make_grid(
    rows: Sequence[Sequence[torch.Tensor]],
    labels: Sequence[str],
    columns: Sequence[str],
    most_side: int = 256,
) -> Image.Image:
    """One picture of images [3, H, W] in [0, 1]: each row under its label, each column under its heading.

    Every image gets a cell of the size and the proportions of the largest one, whose longer side is at most
    `most_side` pixels, and which is at least LEAST_SIDE pixels wide, for its heading.
    """
    largest = max((image for row in rows for image in row), key=lambda image: image.shape[-1]).shape[-2:]
    scale = max(min(1.0, most_side / max(largest)), LEAST_SIDE / largest[1])
    high, wide = (max(1, round(side * scale)) for side in largest)
    width = max(len(row) for row in rows) * (wide + GAP) + GAP
    height = LABEL_HEIGHT + len(rows) * (high + LABEL_HEIGHT + GAP)
    page = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(page)
    for place, heading in enumerate(columns):
        pen.text((GAP + place * (wide + GAP), 2), _cut(heading, wide), "black")
    for at, (row, label) in enumerate(zip(rows, labels, strict=True)):
        top = LABEL_HEIGHT + at * (high + LABEL_HEIGHT + GAP)
        pen.text((GAP, top), _cut(label, width), "black")
        for place, image in enumerate(row):
            picture = to_pil(image).resize((wide, high), Image.Resampling.BICUBIC)
            page.paste(picture, (GAP + place * (wide + GAP), top + LABEL_HEIGHT))
    return page


def _cut(text: str, width: int) -> str:
    letters = width // LETTER_WIDTH
    return text if len(text) <= letters else text[: letters - 3] + "..."
