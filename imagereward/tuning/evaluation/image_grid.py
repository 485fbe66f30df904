"""Pictures side by side, with words, as one image to look at."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

from imagereward.images.reading import to_pil

LABEL_HEIGHT = 16
LETTER_WIDTH = 6
GAP = 4
LEAST_SIDE = 128  # a heading's width


def make_grid(
    rows: Sequence[Sequence[torch.Tensor]],
    labels: Sequence[str],
    columns: Sequence[str],
    most_side: int = 256,
) -> Image.Image:
    """One picture: images [3, H, W] in [0, 1], each row under its label, each column under its heading."""
    side = max(LEAST_SIDE, min(most_side, max(image.shape[-1] for row in rows for image in row)))
    width = max(len(row) for row in rows) * (side + GAP) + GAP
    height = LABEL_HEIGHT + len(rows) * (side + LABEL_HEIGHT + GAP)
    page = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(page)
    for place, heading in enumerate(columns):
        pen.text((GAP + place * (side + GAP), 2), _cut(heading, side), "black")
    for at, (row, label) in enumerate(zip(rows, labels, strict=True)):
        top = LABEL_HEIGHT + at * (side + LABEL_HEIGHT + GAP)
        pen.text((GAP, top), _cut(label, width), "black")
        for place, image in enumerate(row):
            picture = to_pil(image).resize((side, side), Image.Resampling.BICUBIC)
            page.paste(picture, (GAP + place * (side + GAP), top + LABEL_HEIGHT))
    return page


def _cut(text: str, width: int) -> str:
    letters = width // LETTER_WIDTH
    return text if len(text) <= letters else text[: letters - 3] + "..."
