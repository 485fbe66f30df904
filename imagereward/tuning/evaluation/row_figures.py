"""HTML figures of the pictures that a row brings: the image to change, and the mask."""

from imagereward.scoring.ranking import thumbnail
from imagereward.tuning.data.requests import Row


def row_figures(row: Row) -> str:
    """The row's image and mask with their names; empty for a row without pictures."""
    given = {name: getattr(row, name, None) for name in ("image", "mask")}
    figures = "".join(
        f'<figure><img src="{thumbnail(picture)}" alt="{name}"><figcaption>{name}</figcaption></figure>'
        for name, picture in given.items()
        if picture is not None
    )
    return f'<div class="pair">{figures}</div>' if figures else ""
