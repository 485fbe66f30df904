"""Data that Shapes draws when it is read: scenes with masks, and preferences by their truth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from imagereward import shapes
from imagereward.errors import InputError
from imagereward.images.preprocess import Preprocess
from imagereward.tuning.data.image_size import ImageSize
from imagereward.tuning.data.requests import Request, Row

MASKED = ("image", "mask")  # pictures that models for inpainting take
PREFERENCES = 3  # a stream of random numbers beside those of the splits train, valid and test, 0 to 2


def drawn_preprocess(size: ImageSize, inputs: Sequence[str]) -> Preprocess:
    """The preprocessing of drawn images.

    Raises InputError for a size that is not square, and for a model that takes an image but no mask.
    """
    if size.height != size.width:
        raise InputError(f"resolution={size.short}: Shapes are square; expected one number of pixels")
    if tuple(inputs) not in ((), MASKED):
        raise InputError(
            f'data="shapes": Shapes draws nothing for a model that takes {", ".join(("prompt", *inputs))}; '
            "name a table with these columns instead"
        )
    return Preprocess(size.height)


def drawn_prompts(count: int, seed: int, most_things: int) -> list[str]:
    """The prompts of the scenes 0 to count - 1; nothing is drawn for them."""
    return [shapes.prompt(index, seed, most_things=most_things) for index in range(count)]


class MaskedRows(Sequence[Row]):
    """Rows of drawn scenes with a mask over one thing. Row i is a function of (seed, i), drawn when read."""

    def __init__(self, count: int, seed: int, size: int, most_things: int):
        self.number, self.seed, self.size, self.most_things = count, seed, size, most_things

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(self.number))]
        if not 0 <= index < self.number:
            raise IndexError(index)
        scene = shapes.masked_scene(index, self.seed, size=self.size, most_things=self.most_things)
        where = f"scene {index} of Shapes (seed {self.seed})"
        return Request(scene.prompt, scene.image, scene.mask, where=where)


class MaskedShapes(Dataset):
    """Drawn scenes with a mask over one thing, for models for inpainting: the scene is also the target.

    count, seed  number of scenes; scene i is a function of (seed, i)
    preprocess   of the size in pixels
    most_things  in a scene, 1 to 4
    """

    def __init__(self, count: int, seed: int, preprocess: Preprocess, most_things: int):
        self.preprocess, self.texts = preprocess, drawn_prompts(count, seed, most_things)
        self.rows = MaskedRows(count, seed, preprocess.size, most_things)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def identity(self) -> str:
        """The count, the seed, the most things in a scene, and the size in pixels."""
        rows = self.rows
        return f"shapes with masks {rows.number} {rows.seed} {rows.most_things} {rows.size}"

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        return {"prompt": row.prompt, "wrong": [], "pixels": self.preprocess.pixels(row.image)}


class DrawnPreferences(Dataset):
    """The images of drawn preferences: image 2 i is the chosen one of pair i, image 2 i + 1 the rejected one.

    The chosen image shows what the prompt says, without a flaw. Half of the rejected images show something
    else, half are damaged, each at a random level from 1 to 3. With `masked`, the chosen image is that of
    `MaskedRows`, and the rejected one is the same picture with a wrong thing under the mask.

    count, seed  number of pairs; pair i is a function of (seed, i)
    preprocess   of the size in pixels
    most_things  in a scene, 1 to 4
    """

    def __init__(self, count: int, seed: int, preprocess: Preprocess, most_things: int, masked: bool):
        self.count, self.seed, self.preprocess = count, seed, preprocess
        self.most_things, self.masked = most_things, masked

    def __len__(self) -> int:
        return 2 * self.count

    @property
    def identity(self) -> str:
        """The count, the seed, the most things, the size in pixels, and whether there are masks."""
        facts = (self.count, self.seed, self.most_things, self.preprocess.size, self.masked)
        return f"preferences of shapes {facts}"

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {"pixels": self.preprocess.pixels(self._draw(*divmod(index, 2)))}

    def _draw(self, pair: int, rejected: int):
        size = self.preprocess.size
        if self.masked:
            scene = shapes.masked_scene(pair, self.seed, size=size, most_things=self.most_things)
            return scene.wrong if rejected else scene.image
        request = shapes.read(shapes.prompt(pair, self.seed, most_things=self.most_things))
        rng = np.random.default_rng([self.seed, PREFERENCES, pair, rejected])
        level = int(rng.integers(1, shapes.LEVELS + 1)) if rejected else 0
        faithfulness, quality = (level, 0) if rng.random() < 0.5 else (0, level)
        return shapes.candidate(request, faithfulness, quality, rng, size)[0]
