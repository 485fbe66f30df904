"""Images of parts, read, decoded and resized in worker processes ahead of the model."""

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset

from imagereward.bulk.cache import FeatureReader
from imagereward.bulk.rows import Image, Part
from imagereward.bulk.stored import Stored
from imagereward.errors import ImageRewardError
from imagereward.generation_metadata import Markup, prompt_of
from imagereward.images import check_image, read_encoded, read_image, size_of
from imagereward.preprocess import Preprocess

# Images in one message from a worker: few enough to keep all workers busy at the end of a part.
IMAGES_AT_ONCE = 8

Item = TypeVar("Item")
Images: TypeAlias = "dict[Image | None, Loaded]"  # what came of the images of a part


class Wish(NamedTuple):
    """An image to load: of the row `number`, for messages; with the prompt that belongs to it, or not."""

    number: int
    image: Image
    with_prompt: bool


@dataclass
class Loaded:
    """What came of an image: 8-bit (for HPS: float) pixels [3, S, S] per preprocess, or an `error`.

    `digest` is the hash of the encoded image, if features are cached; `pixels` are None as well if all
    features of such an image were there.
    """

    pixels: tuple[np.ndarray, ...] | None = None
    width: int | None = None
    height: int | None = None
    prompt: str | None = None
    digest: bytes | None = None
    error: str | None = None


@dataclass(frozen=True)
class Loader(Dataset):
    """What a worker does: wishes to loaded images."""

    preprocesses: tuple[Preprocess, ...]
    digests: bool = False
    features: FeatureReader | None = None  # images whose features are there need no pixels
    markup: Markup = "strip"  # what becomes of weights and LoRA tags in generators' prompts

    def __getitem__(self, wishes: Sequence[Wish]) -> list[Loaded]:
        return [self.load(wish) for wish in wishes]

    def load(self, wish: Wish, use_cache: bool = True) -> Loaded:
        """One image; whatever is wrong with it becomes its `error`."""
        loaded = Loaded()
        try:
            source = wish.image.read() if isinstance(wish.image, Stored) else wish.image
            if self.digests:
                check_image(source, wish.number)
                loaded.digest = _digest(source, wish.number)
                if use_cache and self.features and loaded.digest in self.features:
                    loaded.width, loaded.height = size_of(source, wish.number)
            if loaded.width is None:
                image = read_image(source, wish.number)
                loaded.width, loaded.height = image.size
                loaded.pixels = tuple(each.pixels(image).numpy() for each in self.preprocesses)
            if wish.with_prompt:
                loaded.prompt = prompt_of(source, self.markup, str(wish.image))
        except ImageRewardError as error:
            loaded.error = str(error)
        except Exception as error:  # whatever one image does to a decoder, the others go on
            loaded.error = f"images[{wish.number}] cannot be used: {type(error).__name__}: {error}"
        return loaded


def wishes_of(part: Part) -> list[Wish]:
    """The part's images, each once."""
    first: dict[Image, Wish] = {}
    for row in part.rows:
        if row.image is not None and row.error is None:
            first.setdefault(row.image, Wish(row.number, row.image, row.prompt is None))
    return list(first.values())


def load_parts(
    parts: Iterable[Part], loader: Loader, workers: int
) -> Generator[tuple[Part, Images], None, None]:
    """Every part with what came of its images, in order. At most a few parts' images are in memory."""
    begun: deque[tuple[Part, int]] = deque()

    def messages() -> Iterator[list[Wish]]:
        for part in parts:
            wishes = wishes_of(part)
            starts = range(0, max(1, len(wishes)), IMAGES_AT_ONCE)  # one also for a part without images
            begun.append((part, len(starts)))
            yield from (wishes[start : start + IMAGES_AT_ONCE] for start in starts)

    # Arrays instead of tensors: they come through pipes and need no shared memory, which containers lack.
    answers = DataLoader(
        loader, sampler=messages(), batch_size=None, num_workers=workers, collate_fn=_as_it_is
    )
    loaded: list[Loaded] = []
    count = 0
    try:
        for answer in answers:
            loaded, count = [*loaded, *answer], count + 1
            if count == begun[0][1]:
                part = begun.popleft()[0]
                yield part, {wish.image: each for wish, each in zip(wishes_of(part), loaded)}
                loaded, count = [], 0
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise ImageRewardError(f"a process that decodes images died; is memory short? {error}") from error


def one_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """`items`, each taken by a thread while the one before it is in use."""
    end = object()
    with ThreadPoolExecutor(1, "imagereward-ahead") as pool:
        ahead = pool.submit(next, items, end)
        while (item := ahead.result()) is not end:
            ahead = pool.submit(next, items, end)
            yield item  # type: ignore[misc]


def _as_it_is(loaded: list[Loaded]) -> list[Loaded]:
    return loaded


def _digest(source: str | bytes, number: int) -> bytes:
    return hashlib.sha256(source if isinstance(source, bytes) else read_encoded(source, number)).digest()
