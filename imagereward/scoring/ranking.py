"""Ranking: a prompt's images with scores and ranks, shown as a table or as thumbnails in a notebook."""

import base64
import io
from dataclasses import dataclass, field
from typing import Any

from imagereward.errors import ImageReadError
from imagereward.images.reading import read_image
from imagereward.pages import render
from imagereward.table import table

THUMBNAIL = 160  # pixels of the longer side, in notebooks and reports


@dataclass(frozen=True, repr=False)
class Ranking:
    """The images of one prompt with their rewards, in the order of the input.

    images      the images as they were given
    names       a name of each image: its path, or its index
    rewards     the score of each image, higher is better
    ranks       the rank of each image, 1 for the best; equal rewards share a rank (1, 2, 2, 4)
    model       the scorer's name
    tokens      the prompt's number of tokens before truncation
    truncated   whether the scorer read only the prompt's beginning
    components  {name: scores of the images} of an ensemble's components; empty for other scorers
    """

    prompt: str
    images: list[Any]
    names: list[str]
    rewards: list[float]
    ranks: list[int]
    model: str
    tokens: int
    truncated: bool
    components: dict[str, list[float]] = field(default_factory=dict)

    @property
    def order(self) -> list[int]:
        """Indices of the images, best first; images with equal rewards in list order."""
        return sorted(range(len(self.rewards)), key=lambda index: -self.rewards[index])

    @property
    def best(self) -> Any:
        """The image with the highest reward, as it was given."""
        return self.images[self.order[0]]

    def __len__(self) -> int:
        return len(self.rewards)

    def rows(self) -> list[dict[str, Any]]:
        """A dict for each image, best first: rank, reward, the components' scores, name of the image."""
        return [
            {
                "rank": self.ranks[index],
                "reward": self.rewards[index],
                **{name: values[index] for name, values in self.components.items()},
                "image": self.names[index],
            }
            for index in self.order
        ]

    def __repr__(self) -> str:
        return f"{self.model}: {self.prompt!r}{self._note()}\n{table(self.rows())}"

    def _repr_html_(self) -> str:
        return render("ranking.html", ranking=self, note=self._note(), picture_of=self._picture)

    def _picture(self, index: int) -> str:
        """A data: URL of the image's thumbnail; "" for a file that has gone since it was ranked."""
        try:
            return thumbnail(self.images[index])
        except ImageReadError:
            return ""

    def _note(self) -> str:
        return f" (prompt cut: {self.tokens} tokens)" if self.truncated else ""


def ranks_of(rewards: list[float]) -> list[int]:
    """The rank of each value, 1 for the highest; equal values share the smaller rank: 1, 2, 2, 4."""
    first: dict[float, int] = {}
    for place, reward in enumerate(sorted(rewards, reverse=True), 1):
        first.setdefault(reward, place)
    return [first[reward] for reward in rewards]


def thumbnail(image) -> str:
    """A data: URL of the image as PNG, at most THUMBNAIL pixels on the longer side, for HTML pages."""
    picture = read_image(image).convert("RGB")
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
