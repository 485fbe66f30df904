"""The content of requests to a reward server and of its answers; `exchange.py` sends the requests.

The rows to score are split into parts. A part becomes the form of one request, and the answer has the scores
of the part's rows. A failure names the faulty images, and says whether other requests can succeed.
"""

import email.utils
import io
import json
import os
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from imagereward.errors import ImageRewardError, InputError
from imagereward.images.orientation import ORIENTATION, orientation
from imagereward.images.reading import ImageLike, check_image, identity, read_encoded, read_image
from imagereward.scoring.questions import Rows

# Pillow's modes that a format stores without loss. Other modes are rare, and only new versions of Pillow read
# a TIFF of YCbCr.
LOSSLESS = {
    **dict.fromkeys(("1", "L", "LA", "P", "RGB", "RGBA"), "PNG"),
    **dict.fromkeys(("CMYK", "LAB"), "TIFF"),
}
# HTTP statuses of a server that is full or starting, or of its proxy: the same request may succeed later.
TRANSIENT = (429, 502, 503, 504)
# Refused for its content: the same request would be refused again, and another one may not be.
REFUSED = (400, 413, 415, 422)
OWN_FAULTS = (400, 413, 422, 500)  # faults of one request; other requests may succeed
FIRST_WAIT, LONGEST_WAIT = 0.25, 20.0  # seconds, without Retry-After
LONGEST_ASKED_WAIT = 120.0  # seconds, with it
BODY_SHARE = 0.9  # share of the largest body that images may take; the rest is for prompts and pairs


class Failed(Exception):
    """A request that gave no scores.

    cause     the reason, in words
    images    {index in the part: fault} of faulty images; the others can be sent again without them
    halve     the part is too large, or one of its rows is refused; its halves may succeed
    refused   the server refused the content, and would again
    stop_all  other requests would fail too
    """

    def __init__(
        self,
        cause: str,
        images: Mapping[int, str] | None = None,
        *,
        halve: bool = False,
        refused: bool = False,
        stop_all: bool = False,
    ):
        super().__init__(cause)
        self.refused = refused
        self.cause = cause
        self.images = images or {}
        self.halve = halve
        self.stop_all = stop_all


class Part(NamedTuple):
    """The rows of one request.

    images   indices of the request's images among all images
    prompts  indices of its prompts among all prompts
    rows     indices of its rows among all rows
    pairs    for each row (index in `images`, index in `prompts`)
    """

    images: list[int]
    prompts: list[int]
    rows: list[int]
    pairs: list[tuple[int, int]]

    def of(self, chosen: Iterable[int]) -> "Part":
        """The part with only the chosen images (indices in `images`), their rows and their prompts."""
        place = {image: index for index, image in enumerate(chosen)}
        kept = [index for index, (image, _) in enumerate(self.pairs) if image in place]
        asked = dict.fromkeys(self.pairs[index][1] for index in kept)
        number = {prompt: index for index, prompt in enumerate(asked)}
        return Part(
            [self.images[image] for image in place],
            [self.prompts[prompt] for prompt in asked],
            [self.rows[index] for index in kept],
            [(place[image], number[prompt]) for image, prompt in map(self.pairs.__getitem__, kept)],
        )

    def halves(self) -> list["Part"]:
        """Two parts with half of the images each, or, of one image, with half of its rows; [] for one row."""
        middle = len(self.images) // 2
        if middle:
            places = range(len(self.images))
            return [self.of(places[:middle]), self.of(places[middle:])]
        middle = len(self.rows) // 2
        return [self._some(slice(0, middle)), self._some(slice(middle, None))] if middle else []

    def _some(self, chosen: slice) -> "Part":
        """The chosen rows of a part with one image, with their prompts alone."""
        asked = [prompt for _, prompt in self.pairs[chosen]]
        place = {prompt: index for index, prompt in enumerate(dict.fromkeys(asked))}
        pairs = [(0, place[prompt]) for prompt in asked]
        return Part(self.images, [self.prompts[prompt] for prompt in place], self.rows[chosen], pairs)


def check(rows: Rows) -> None:
    """Raises InputError for nothing to score, and an image's error for an unreadable header."""
    if not rows.prompts or not rows.images:
        raise InputError(f"nothing to score: {len(rows.prompts)} prompts and {len(rows.images)} images")
    for index, image in enumerate(rows.images):
        check_image(image, index)


def split(rows: Rows, batch_size: int, limits: Mapping[str, int]) -> Iterator[Part]:
    """Parts of at most `batch_size` images, within the server's limits.

    limits  the server's most "images", "prompts" and "pairs" in a request

    Equal images, and equal prompts, are sent once in a part.
    """
    image_of = _firsts([identity(image) for image in rows.images])
    prompt_of = _firsts(rows.prompts)
    image_P, prompt_P = (of[column] for of, column in zip((image_of, prompt_of), rows.pairs_P_2.numpy().T))
    # If there are more prompts than a request takes, rows are sorted into bands of prompts, then by image.
    order = np.lexsort((image_P, prompt_P // limits["prompts"]))
    most_images = min(batch_size, limits["images"])
    images: dict[int, int] = {}  # index -> place in the part
    prompts: dict[int, int] = {}
    members: list[int] = []
    pairs: list[tuple[int, int]] = []
    for row, image, prompt in zip(order.tolist(), image_P[order].tolist(), prompt_P[order].tolist()):
        if (
            (len(images) >= most_images and image not in images)
            or (len(prompts) >= limits["prompts"] and prompt not in prompts)
            or len(members) >= limits["pairs"]
        ):
            yield Part(list(images), list(prompts), members, pairs)
            images, prompts, members, pairs = {}, {}, [], []
        pairs.append((images.setdefault(image, len(images)), prompts.setdefault(prompt, len(prompts))))
        members.append(row)
    yield Part(list(images), list(prompts), members, pairs)


def form(rows: Rows, part: Part, model: str, most_bytes: int) -> dict[str, Any]:
    """The part as arguments `data` and `files` for httpx; `most_bytes` is the server's largest body.

    Raises Failed for images that cannot be encoded, and for too many bytes.
    """
    files, faults = [], {}
    for place, index in enumerate(part.images):
        try:
            files.append(("images", (str(index), encode(rows.images[index], index))))
        except (ImageRewardError, OSError) as error:
            faults[place] = explain(error)
    if faults:
        raise Failed("images that cannot be sent", faults)
    size = sum(len(data) for _, (_, data) in files)
    if size > most_bytes and len(part.images) == 1:
        raise Failed("an image is too large", {0: f"has {size} bytes; the server takes at most {most_bytes}"})
    if size > BODY_SHARE * most_bytes and len(part.images) > 1:
        raise Failed(f"{size} bytes of images are too many for one request", halve=True)
    prompts = [rows.prompts[prompt] for prompt in part.prompts]
    return {"data": {"model": model, "prompts": prompts, "pairs": json.dumps(part.pairs)}, "files": files}


def encode(image: ImageLike, index: int) -> bytes:
    """The image as bytes, without loss: a file or bytes as they are, others as PNG, CMYK and LAB as TIFF."""
    if isinstance(image, (str, os.PathLike)):
        return read_encoded(image, index)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    picture = read_image(image, index)
    if picture.mode not in LOSSLESS:
        raise InputError(
            f"images[{index}] is of mode {picture.mode}, which no format holds without loss: "
            "pass image.convert('RGB')"
        )
    buffer = io.BytesIO()
    # The fastest compression, because stronger compression seldom saves as much time in the network.
    options: dict[str, Any] = {"compress_level": 1} if LOSSLESS[picture.mode] == "PNG" else {}
    if options and (turn := orientation(picture)) != 1:  # the server's scorer may turn the image
        options["exif"] = PIL.Image.Exif()
        options["exif"][ORIENTATION] = turn
    picture.save(buffer, LOSSLESS[picture.mode], **options)
    return buffer.getvalue()


def answer_of(response) -> Any:
    """The JSON of a response with status 200; Failed with the server's reason for any other status."""
    try:
        content = response.json()
    except ValueError:
        content = response.text[:200]
    if response.status_code == 200:
        return content
    reason = content.get("detail", content) if isinstance(content, dict) else content
    found = content.get("images") if isinstance(content, dict) else None
    images = {key: each for key, each in found.items() if key.isdecimal()} if isinstance(found, dict) else {}
    raise Failed(
        f"HTTP {response.status_code}: {reason}",
        {int(index): str(fault) for index, fault in images.items()},
        halve=response.status_code in (413, 422) and not images,
        refused=response.status_code in REFUSED,
        stop_all=response.status_code not in OWN_FAULTS,
    )


def wait(attempt: int, retry_after: str | None) -> float:
    """Seconds before the next attempt: retry_after + uniform(0, min(20, 0.25 * 2^attempt)).

    attempt      attempts before this one, from 0
    retry_after  the server's Retry-After header, counted up to 120 s; None: 0
    """
    drawn = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**attempt))
    return drawn + min(LONGEST_ASKED_WAIT, _seconds(retry_after))


def checked_token(token: str, what: str) -> str:
    """The token without white space around it; InputError if it is empty or not printable ASCII.

    what  the token's name in the message, which does not show the token
    """
    token = token.strip()
    if not token or not all("!" <= letter <= "~" for letter in token):
        raise InputError(f"{what} is empty, or has white space or letters outside ASCII in it")
    return token


def explain(error: Exception) -> str:
    """An exception's message, with its type unless it is one of this package's errors."""
    words = str(error) or type(error).__name__
    return words if isinstance(error, ImageRewardError) else f"{type(error).__name__}: {words}"


def _seconds(retry_after: str | None) -> float:
    """The seconds of a Retry-After header, given in seconds or as a date; 0 if it is missing or invalid."""
    if retry_after is None:
        return 0.0
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0


def _firsts(keys: list) -> np.ndarray:
    """For each key the index of its first occurrence."""
    place: dict = {}
    return np.array([place.setdefault(key, index) for index, key in enumerate(keys)])
