"""Images of a part: read, decoded and resized in processes; an unreadable image is an error of its row."""

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, TypeVar

from imagereward.bulk.decoding.cache import FeatureReader
from imagereward.bulk.decoding.decoders import Decoders
from imagereward.bulk.inputs.changes import content_of
from imagereward.bulk.inputs.rows import Image, Part
from imagereward.bulk.inputs.stored import Stored
from imagereward.errors import ImageRewardError
from imagereward.generation_metadata import Markup, prompt_of
from imagereward.images.processor import Processor, as_arrays
from imagereward.images.reading import check_image, read_encoded, read_image, size_of

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
    features of such an image were there. `content` is `content_of` the image, if the loader takes it.
    """

    pixels: tuple | None = None
    width: int | None = None
    height: int | None = None
    prompt: str | None = None
    digest: bytes | None = None
    content: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Loader:
    """What a worker does: wishes to loaded images."""

    processors: tuple[Processor, ...]
    digests: bool = False
    features: FeatureReader | None = None  # images whose features are there need no pixels
    markup: Markup = "strip"  # what becomes of weights and LoRA tags in generators' prompts
    contents: bool = False  # whether a hash of every image is kept: where images are the input itself

    def __getitem__(self, wishes: Sequence[Wish]) -> list[Loaded]:
        return [self.load(wish) for wish in wishes]

    def load(self, wish: Wish, use_cache: bool = True) -> Loaded:
        """One image; whatever is wrong with it becomes its `error`."""
        loaded = Loaded()
        try:
            source = wish.image.read() if isinstance(wish.image, Stored) else wish.image
            if self.contents:
                loaded.content = content_of(source)
            if self.digests:
                check_image(source, wish.number)
                loaded.digest = _digest(source, wish.number)
                if use_cache and self.features and loaded.digest in self.features:
                    loaded.width, loaded.height = size_of(source, wish.number)
            if loaded.width is None:
                image = read_image(source, wish.number)
                loaded.width, loaded.height = image.size
                loaded.pixels = tuple(as_arrays(each.load(image)) for each in self.processors)
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


def load_parts(parts: Iterable[Part], decoders: Decoders) -> Generator[tuple[Part, Images], None, None]:
    """Every part with what came of its images, in order. At most a few parts' images are in memory."""
    begun: deque[tuple[Part, list[Wish], int]] = deque()  # parts on their way, with their numbers of requests

    def requests() -> Iterator[list[Wish]]:
        for part in parts:
            wishes = wishes_of(part)
            starts = range(0, max(1, len(wishes)), IMAGES_AT_ONCE)  # one also for a part without images
            begun.append((part, wishes, len(starts)))
            yield from (wishes[start : start + IMAGES_AT_ONCE] for start in starts)

    loaded: list[Loaded] = []
    count = 0
    for answer in decoders.answers(requests()):
        loaded.extend(answer)
        count += 1
        part, wishes, expected = begun[0]
        if count == expected:
            begun.popleft()
            yield part, {wish.image: each for wish, each in zip(wishes, loaded, strict=True)}
            loaded, count = [], 0


def one_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """`items`, each taken by a thread while the one before it is in use.

    Closing it does not wait for the item that is on its way: what makes the items must be closed next.
    """
    end = object()
    pool = ThreadPoolExecutor(1, "imagereward-ahead")
    try:
        ahead = pool.submit(next, items, end)
        while (item := ahead.result()) is not end:
            ahead = pool.submit(next, items, end)
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _digest(source: str | bytes, number: int) -> bytes:
    return hashlib.sha256(source if isinstance(source, bytes) else read_encoded(source, number)).digest()
