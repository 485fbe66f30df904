"""Images of parts to pixels, in processes ahead of the model; catches those that are damaged."""

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, TypeVar

from imagereward.bulk.decoding.cache import FeatureReader
from imagereward.bulk.decoding.decoders import Decoders
from imagereward.bulk.inputs.changes import content_of
from imagereward.bulk.inputs.rows import Image, TablePart
from imagereward.bulk.inputs.stored import Stored
from imagereward.errors import ImageReadError, ImageRewardError, InputError
from imagereward.generation_metadata import Markup, prompt_of
from imagereward.images.processor import Processor, as_arrays
from imagereward.images.reading import check_image, read_encoded, read_image, size_of

# Images in one message to and from a worker: few, so that all workers stay busy at the end of a part.
IMAGES_AT_ONCE = 8

Item = TypeVar("Item")
Images: TypeAlias = "dict[Image | None, Loaded]"  # the images of a part, each decoded or with an error


class ImageRequest(NamedTuple):
    """An image to load.

    number        of the image's first row, for messages
    with_prompt   whether to read the prompt beside the image or in its metadata as well
    """

    number: int
    image: Image
    with_prompt: bool


@dataclass
class Loaded:
    """A loaded image, or the reason why it could not be loaded.

    pixels          uint8 (HPS: float) [3, S, S] for each preprocess; None with an `error`, and where the
                    cache holds the features of all encoders
    width, height   of the original image, in pixels
    prompt          beside the image or in its metadata, if requested and found
    no_prompt       why no prompt was found, if requested
    digest          SHA-256 of the encoded image, if features are cached
    content         `content_of` the image, if the loader computes it
    error           why the image cannot be used
    """

    pixels: tuple | None = None
    width: int | None = None
    height: int | None = None
    prompt: str | None = None
    no_prompt: str | None = None
    digest: bytes | None = None
    content: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Loader:
    """The work of a decoding process: lists of image requests to lists of loaded images.

    processors     one for each image encoder that needs its own pixels
    digests        whether to hash every encoded image, the key of the feature cache
    features       the cache; an image whose features it holds is not decoded
    markup         "strip" or "keep": weights and LoRA tags in prompts that generators wrote
    contents       whether to compute `content_of` every image, where images are the input itself
    """

    processors: tuple[Processor, ...]
    digests: bool = False
    features: FeatureReader | None = None
    markup: Markup = "strip"
    contents: bool = False

    def __getitem__(self, requests: Sequence[ImageRequest]) -> list[Loaded]:
        return [self.load(request) for request in requests]

    def load(self, request: ImageRequest, use_cache: bool = True) -> Loaded:
        """Load one image; any exception becomes its `error`. Without `use_cache`, always decode it."""
        loaded = Loaded()
        try:
            source = request.image.read() if isinstance(request.image, Stored) else request.image
            if self.contents:
                loaded.content = content_of(source)
            if self.digests:
                check_image(source, request.number)
                loaded.digest = _digest(source, request.number)
                if use_cache and self._is_cached(loaded.digest):
                    loaded.width, loaded.height = size_of(source, request.number)
            if loaded.width is None:
                image = read_image(source, request.number)
                # Otherwise the cache would have another picture's features.
                if (
                    self.digests
                    and not isinstance(source, bytes)
                    and _digest(source, request.number) != loaded.digest
                ):
                    raise ImageReadError(f"images[{request.number}] ({source}) changed while it was read")
                loaded.width, loaded.height = image.size
                loaded.pixels = tuple(as_arrays(each.load(image)) for each in self.processors)
            if request.with_prompt:
                try:
                    loaded.prompt = prompt_of(source, self.markup, str(request.image))
                except ImageRewardError as error:  # another row of this image may have a prompt
                    loaded.no_prompt = str(error)
        except ImageRewardError as error:
            loaded.error = str(error)
        except Exception as error:  # one image that breaks a decoder must not end the run
            loaded.error = f"images[{request.number}] cannot be used: {type(error).__name__}: {error}"
        return loaded

    def _is_cached(self, digest: bytes) -> bool:
        """Whether the cache holds the image; False if it fails: the scorer asks it too, and ends the run."""
        try:
            return self.features is not None and digest in self.features
        except InputError:
            return False


def image_requests_of(part: TablePart) -> list[ImageRequest]:
    """A request for each distinct image of the part, in order of its first row; faulty rows left out."""
    without = {row.image for row in part.rows if row.prompt is None and row.error is None}
    first: dict[Image, ImageRequest] = {}
    for row in part.rows:
        if row.image is not None and row.error is None:
            first.setdefault(row.image, ImageRequest(row.number, row.image, row.image in without))
    return list(first.values())


def load_parts(
    parts: Iterable[TablePart], decoders: Decoders
) -> Generator[tuple[TablePart, Images], None, None]:
    """(part, its loaded images), in order of the parts. Holds the images of a few parts in memory."""
    # (part, its requests, number of messages that they take), of the parts whose images are being loaded
    begun: deque[tuple[TablePart, list[ImageRequest], int]] = deque()

    def messages() -> Iterator[list[ImageRequest]]:
        for part in parts:
            requests = image_requests_of(part)
            # A part without images takes one empty message.
            starts = range(0, max(1, len(requests)), IMAGES_AT_ONCE)
            begun.append((part, requests, len(starts)))
            yield from (requests[start : start + IMAGES_AT_ONCE] for start in starts)

    loaded: list[Loaded] = []
    count = 0
    for answer in decoders.answers(messages()):
        loaded.extend(answer)
        count += 1
        part, requests, expected = begun[0]
        if count == expected:
            begun.popleft()
            yield part, {request.image: each for request, each in zip(requests, loaded, strict=True)}
            loaded, count = [], 0


def one_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """Yield `items`; a thread computes the next item while the caller uses the current one.

    Closing this generator does not wait for the thread: close the source of the items afterwards.
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
