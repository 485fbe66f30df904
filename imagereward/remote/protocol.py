"""Requests to a reward server and their answers, as data; `exchange.py` sends them.

Rows to score are split into parts, a part becomes the form of one request, and its answer the scores of
the part's rows. A failure says which images are at fault and whether other requests would fare better.
"""

import email.utils
import io
import json
import math
import os
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch

from imagereward.errors import ImageRewardError, InputError, RemoteError, listing
from imagereward.images.orientation import ORIENTATION, orientation
from imagereward.images.reading import ImageLike, check_image, identity, name_of, read_encoded, read_image
from imagereward.scoring.questions import Rows, Scored

# Modes that the formats hold as they are; what Pillow has besides is rare and not worth a format
# (a TIFF of YCbCr can be read again only by the newer Pillows).
LOSSLESS = {
    **dict.fromkeys(("1", "L", "LA", "P", "RGB", "RGBA"), "PNG"),
    **dict.fromkeys(("CMYK", "LAB"), "TIFF"),
}
# A server that is full, or starting, or behind a proxy that says so: the same request may succeed later.
TRANSIENT = (429, 502, 503, 504)
FIRST_WAIT, LONGEST_WAIT = 0.25, 20.0  # seconds, without Retry-After
LONGEST_ASKED_WAIT = 120.0  # seconds, with it
BODY_SHARE = 0.9  # of the largest body may be images; the rest is for prompts and pairs


class Failed(Exception):
    """A request without scores, and why.

    images  which of the part's images are at fault, and how: the others can be sent again without them
    halve   the part is too large, and its halves may not be
    lost    other requests would fare no better
    """

    def __init__(
        self,
        cause: str,
        images: Mapping[int, str] | None = None,
        *,
        halve: bool = False,
        lost: bool = False,
    ):
        super().__init__(cause)
        self.cause = cause
        self.images = images or {}
        self.halve = halve
        self.lost = lost


class Part(NamedTuple):
    """Rows that go in one request: their places in the whole, and of its images and prompts the same.

    pairs[i] is row rows[i] in places within `images` and `prompts`.
    """

    images: list[int]
    prompts: list[int]
    rows: list[int]
    pairs: list[tuple[int, int]]

    def of(self, chosen: Iterable[int]) -> "Part":
        """The rows of some of its images, given by place."""
        place = {image: index for index, image in enumerate(chosen)}
        kept = [index for index, (image, _) in enumerate(self.pairs) if image in place]
        return Part(
            [self.images[image] for image in place],
            self.prompts,
            [self.rows[index] for index in kept],
            [(place[self.pairs[index][0]], self.pairs[index][1]) for index in kept],
        )


def check(rows: Rows) -> None:
    """What `Scorer` checks before it starts: something to score, and images with readable headers."""
    if not rows.prompts or not rows.images:
        raise InputError(f"nothing to score: {len(rows.prompts)} prompts and {len(rows.images)} images")
    for index, image in enumerate(rows.images):
        check_image(image, index)


def split(rows: Rows, batch_size: int, limits: Mapping[str, int]) -> Iterator[Part]:
    """Parts of at most `batch_size` images, within the server's limits; equal images and prompts go once."""
    image_of = _firsts([identity(image) for image in rows.images])
    prompt_of = _firsts(rows.prompts)
    image_P, prompt_P = (of[column] for of, column in zip((image_of, prompt_of), rows.pairs_P_2.numpy().T))
    # A matrix with more prompts than a request takes goes in bands of prompts, image by image in each.
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
    """The part as arguments for httpx; Failed for an image that cannot be sent, and for too many bytes."""
    files, faults = [], {}
    for place, index in enumerate(part.images):
        try:
            files.append(("images", (str(index), encode(rows.images[index], index))))
        except (ImageRewardError, OSError) as error:
            faults[place] = explain(error)
    if faults:
        raise Failed("images that cannot be sent", faults)
    size = sum(len(data) for _, (_, data) in files)
    if size > BODY_SHARE * most_bytes and len(part.images) > 1:
        raise Failed(f"{size} bytes of images are too many for one request", halve=True)
    prompts = [rows.prompts[prompt] for prompt in part.prompts]
    return {"data": {"model": model, "prompts": prompts, "pairs": json.dumps(part.pairs)}, "files": files}


def encode(image: ImageLike, index: int) -> bytes:
    """The image without loss: a file as it is, anything else as PNG (print colours as TIFF)."""
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
    # The fastest compression: the network is seldom slower than more of it.
    options: dict[str, Any] = {"compress_level": 1} if LOSSLESS[picture.mode] == "PNG" else {}
    if options and (turn := orientation(picture)) != 1:  # a scorer behind the server may turn it
        options["exif"] = PIL.Image.Exif()
        options["exif"][ORIENTATION] = turn
    picture.save(buffer, LOSSLESS[picture.mode], **options)
    return buffer.getvalue()


class Gathered:
    """Scores as they come in, one verb's; used from several threads, each with parts of its own."""

    def __init__(self, rows: Rows, server: str):
        self._rows = rows
        self._server = server
        self._scores = np.full(len(rows.pairs_P_2), np.nan, dtype=np.float32)
        self._causes: dict[int, str] = {}
        self._tokens: dict[str, tuple[int, bool]] = {}
        self.lost: str | None = None  # why nothing more need be sent

    def put(self, part: Part, answer: Any) -> None:
        """The server's answer to a part; Failed if it does not hold that part's scores."""
        try:
            scores = list(answer["scores"])
            read = list(zip(answer["tokens"], answer["truncated"], strict=True))
            if len(scores) != len(part.rows) or len(read) != len(part.prompts):
                raise ValueError(f"{len(scores)} scores for {len(part.rows)} rows")
            if not all(isinstance(score, (int, float)) and math.isfinite(score) for score in scores):
                raise ValueError("scores that are no finite numbers")
        except (TypeError, KeyError, ValueError) as error:
            raise Failed(f"its answer is not one of a reward server: {error!r}", lost=True) from error
        self._scores[part.rows] = scores
        for prompt, known in zip(part.prompts, read):
            self._tokens[self._rows.prompts[prompt]] = known

    def fail(self, part: Part, failed: Failed) -> list[Part]:
        """A part has no scores: what is worth sending again of it. Of other rows the cause is kept."""
        places = range(len(part.images))
        if failed.halve:
            middle = len(part.images) // 2
            return [part.of(places[:middle]), part.of(places[middle:])]
        if failed.lost:
            self.lost = failed.cause
        for row, (image, _) in zip(part.rows, part.pairs):
            if not failed.images:
                self._causes[row] = failed.cause
            elif image in failed.images:
                index = part.images[image]
                self._causes[row] = f"{name_of(self._rows.images[index], index)} {failed.images[image]}"
        rest = part.of(place for place in places if place not in failed.images)
        return [rest] if failed.images and rest.rows and not failed.lost else []

    def scored(self) -> Scored:
        """All of it; RemoteError naming the rows without scores."""
        for row in np.flatnonzero(np.isnan(self._scores)).tolist():
            self._causes.setdefault(row, f"not sent, because {self.lost}")
        if self._causes:
            kinds: dict[str, list[int]] = {}
            for row, cause in sorted(self._causes.items()):
                kinds.setdefault(cause, []).append(row)
            faults = "".join(
                f"\n  row {listing(rows, 5)}: {cause}" for cause, rows in list(kinds.items())[:8]
            )
            more = f"\n  and {len(kinds) - 8} causes more" if len(kinds) > 8 else ""
            raise RemoteError(
                f"{self._server}: {len(self._causes)} of {len(self._scores)} rows have no score "
                f"(`causes` has all reasons, `scores` the rest):{faults}{more}",
                self._causes,
                self._scores,
            )
        read = [self._tokens[prompt] for prompt in self._rows.prompts]
        tokens, truncated = [count for count, _ in read], [cut for _, cut in read]
        return Scored(torch.from_numpy(self._scores), tokens, truncated)


def answer_of(response) -> Any:
    """The JSON of a successful response; Failed with the server's reason for any other."""
    try:
        content = response.json()
    except ValueError:
        content = response.text[:200]
    if response.status_code == 200:
        return content
    reason = content.get("detail", content) if isinstance(content, dict) else content
    images = content.get("images", {}) if isinstance(content, dict) else {}
    own = response.status_code in (
        400,
        413,
        422,
        500,
    )  # about this request, not about who sent it or where to
    raise Failed(
        f"HTTP {response.status_code}: {reason}",
        {int(index): str(fault) for index, fault in images.items()},
        lost=not own,
    )


def wait(attempt: int, retry_after: str | None) -> float:
    """Seconds before the next attempt: exponential with full jitter, never less than the server asks."""
    drawn = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**attempt))
    return drawn + min(LONGEST_ASKED_WAIT, _seconds(retry_after))


def checked_token(token: str, what: str) -> str:
    """`token` without white space around it; InputError, without the token, if no header can carry it."""
    token = token.strip()
    if not token or not all("!" <= letter <= "~" for letter in token):
        raise InputError(f"{what} is empty, or has white space or letters outside ASCII in it")
    return token


def explain(error: Exception) -> str:
    """An exception in one line, by kind where it has no words of its own."""
    words = str(error) or type(error).__name__
    return words if isinstance(error, ImageRewardError) else f"{type(error).__name__}: {words}"


def _seconds(retry_after: str | None) -> float:
    """A Retry-After header, in seconds or as a date; 0 if there is none that can be read."""
    if retry_after is None:
        return 0.0
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0


def _firsts(keys: list) -> np.ndarray:
    """For each key the place of its first occurrence."""
    place: dict = {}
    return np.array([place.setdefault(key, index) for index, key in enumerate(keys)])
