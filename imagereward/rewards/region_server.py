"""Rewards of an inpainting reward server (POST /calculate_reward), an image a request."""

import base64
import contextlib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from imagereward.errors import InputError, RemoteError
from imagereward.images.reading import to_pil
from imagereward.remote.client import RemoteScorer
from imagereward.remote.protocol import encode
from imagereward.remote.single import each_answer, finite_number
from imagereward.rewards.inpainting import RowScorer, masks_of

PATH = "/calculate_reward"
FIELDS = ("boundary_score", "hps_score", "clip_score", "mask_ratio")
_KEPT = 256  # answers that are kept, so that several fields of one image take one request


class RegionServerReward(RowScorer):
    """One field of the server's answer, NaN for an image that the server could not score.

    url      such as "http://127.0.0.1:8000/calculate_reward"
    field    of `FIELDS`
    options  those of `connect`: token, timeout, retries, connections

    The request is {image_b_base64, mask_base64, prompt}, both pictures as PNG at the image's size; the answer
    has the four `FIELDS`. A request that finds the server full or gone is sent again; one that fails for
    good, or an answer without the finite number, gives NaN. Raises InputError for another field; RemoteError
    if all images of a batch failed, so that a training tries again, and then stops and can be resumed.
    """

    differentiable = False

    def __init__(self, url: str, field: str, **options: Any):
        self.field = field
        self.remote = RemoteScorer(url.rstrip("/").removesuffix(PATH), **options)
        self.name = f"{self.remote.url}{PATH}#{field}"
        if field not in FIELDS:
            raise InputError(f"{self.name}: expected one of {', '.join('#' + each for each in FIELDS)}")

    def pixel_rewards(
        self, pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str], rows: Sequence[Any] | None = None
    ) -> torch.Tensor:
        """Rewards [B] float32 on the CPU; NaN where the server gave none."""
        masks = masks_of(self.name, pixels_B_3_H_W, rows)
        bodies = [
            {
                "image_b_base64": _base64(to_pil(image)),
                "mask_base64": _base64(to_pil(mask.expand(3, -1, -1)).convert("L")),
                "prompt": prompt,
            }
            for image, mask, prompt in zip(pixels_B_3_H_W, masks, prompts, strict=True)
        ]
        found, causes, _ = each_answer(
            lambda row: _ANSWERS.ask(self.remote, bodies[row], self.field),
            len(bodies),
            self.remote.connections,
        )
        if not found.isfinite().any():
            raise RemoteError(f"{self.name}: no image of {len(prompts)} got a score, the first: {causes[0]}")
        return found


class _Answers:
    """The last answers by server and request; several threads may ask."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, Any] = OrderedDict()
        self._lock = threading.Lock()

    def ask(self, remote: RemoteScorer, body: dict[str, str], field: str) -> float:
        """A field of the server's answer, or of the one that is kept; RemoteError if it is no finite number.

        Neither a failure nor an answer without the number is used again: the next try asks the server.
        """
        key = hashlib.sha256(repr((remote.url, body)).encode()).digest()
        with self._lock:
            kept = self._kept.get(key)
        with contextlib.suppress(RemoteError):
            return finite_number(kept, field)
        answer = remote.ask(PATH, body)
        number = finite_number(answer, field)
        with self._lock:
            self._kept[key] = answer
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return number


_ANSWERS = _Answers()


def _base64(picture) -> str:
    return base64.b64encode(encode(picture, 0)).decode()
