"""Ranking: the result people look at."""

import base64
import html
import io
from dataclasses import dataclass, field
from typing import Any

from imagereward.errors import ImageReadError
from imagereward.images.reading import read_image
from imagereward.table import table

THUMBNAIL = 160  # pixels of the longer side, in notebooks and reports


@dataclass(frozen=True, repr=False)
class Ranking:
    """One prompt's images with their rewards, in the order they were given.

    ranks[i] is image i's rank, 1 the best; equal rewards share a rank (1, 2, 2, 4). `order` lists
    indices best first. `tokens` is the prompt's length before truncation, `truncated` whether the
    model read only its beginning. `components` holds an ensemble's single scores.
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
        """Indices of the images, best first; equal ones in list order."""
        return sorted(range(len(self.rewards)), key=lambda index: -self.rewards[index])

    @property
    def best(self) -> Any:
        """The image with the highest reward, as it was given."""
        return self.images[self.order[0]]

    def __len__(self) -> int:
        return len(self.rewards)

    def rows(self) -> list[dict[str, Any]]:
        """One dict an image, best first: rank, reward, the components if any, image."""
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
        figures = "".join(self._figure(index) for index in self.order)
        title = f"{html.escape(self.model)}: {html.escape(self.prompt)}{html.escape(self._note())}"
        return f'<div><p style="margin:4px">{title}</p>{figures}</div>'

    def _figure(self, index: int) -> str:
        """Thumbnail, rank, reward, each component's score and the name of one image."""
        name = html.escape(self.names[index].rsplit("/", 1)[-1])
        try:
            picture = f'<img src="{thumbnail(self.images[index])}" alt="{html.escape(self.names[index])}"/>'
        except ImageReadError:  # the file has gone since it was ranked
            picture = "<i>image not found</i>"
        components = "".join(
            f"{html.escape(component)} {values[index]:.3f}<br/>"
            for component, values in self.components.items()
        )
        return (
            f'<figure style="display:inline-block;vertical-align:top;margin:4px;text-align:center">{picture}'
            f"<figcaption><b>{self.ranks[index]}</b> &nbsp; {self.rewards[index]:.3f}<br/>"
            f"<small>{components}{name}</small></figcaption></figure>"
        )

    def _note(self) -> str:
        return f" (prompt cut: {self.tokens} tokens)" if self.truncated else ""


def ranks_of(rewards: list[float]) -> list[int]:
    """Competition ranks, 1 the highest; equal values share the smaller number."""
    first: dict[float, int] = {}
    for place, reward in enumerate(sorted(rewards, reverse=True), 1):
        first.setdefault(reward, place)
    return [first[reward] for reward in rewards]


def thumbnail(image) -> str:
    """A small PNG of the image as a data: URL, for pages that stand alone."""
    picture = read_image(image).convert("RGB")
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
