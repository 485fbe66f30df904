"""make_grid: joins images with labels and headings into one picture."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

from imagereward.images.reading import to_pil

# In pixels.
LABEL_HEIGHT = 16
LETTER_WIDTH = 6
GAP = 4  # between cells
LEAST_SIDE = 128  # width of a cell that has room for a heading


def make_grid(
    rows: Sequence[Sequence[torch.Tensor]],
    labels: Sequence[str],
    columns: Sequence[str],
    most_side: int = 256,
) -> Image.Image:
    """One picture of images [3, H, W] in [0, 1]: each row below its label, each column below its heading.

    rows       the images of each row
    labels     a label for each row; long labels are cut
    columns    a heading for each column; long headings are cut
    most_side  longest side of a cell in pixels

    All cells have the proportions of the widest image, and are at least LEAST_SIDE pixels wide.
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
