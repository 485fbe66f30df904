"""Opens a reward by its name: a scorer, a server, or a reward of inpainting around another one.

A name is one of these, in which NAME stands for another:

    boundary                 edges on both sides of the mask's boundary, which should be as strong
    preservation             how far the image moved outside the mask
    inside(NAME)             the reward NAME of the mask's bounding box
    inside(NAME, PIXELS)     ... grown to at least PIXELS a side
    mask_share(NAME)         the reward NAME, weighted by the mask's share of the image
    rest_share(NAME)         the reward NAME, weighted by the rest's
    http://HOST:PORT#MODEL   a reward server's model
    http://HOST:PORT/score   a server that is asked about one image and prompt a request
    http://HOST:PORT/calculate_reward#FIELD   a field of an inpainting reward server
    anything else            what `imagereward.load` takes

inside() takes a NAME that reads no mask itself: boundary, preservation, inside() and a field of an inpainting
reward server, which read the mask of the whole image, are refused. The factors of shares within shares are
multiplied.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch

import imagereward
from imagereward.errors import InputError
from imagereward.rewards.inpainting import Boundary, InsideMask, Preservation, ShareWeighted
from imagereward.rewards.region_server import PATH, RegionServerReward
from imagereward.scoring.api import PairScorer

_AROUND = re.compile(r"\s*(inside|mask_share|rest_share)\((.*)\)\s*", re.DOTALL)
_PIXELS = re.compile(r"(.*),\s*(\d+)\s*", re.DOTALL)
_USER = re.compile(r"(https?://)[^/?#]*@")


def open_reward(name: str, device: torch.device | str | None = None, **options: Any) -> PairScorer:
    """The reward of this name, its models on `device` (default: that of `load`).

    options  further ones of `load`, such as dtype; servers have none of them

    Raises InputError for a name that is not closed, and whatever `load` and `connect` raise.
    """
    if found := _AROUND.fullmatch(name):
        kind, inner = found[1], found[2]
        least = None
        if kind == "inside" and (sized := _PIXELS.fullmatch(inner)):
            inner, least = sized[1], int(sized[2])
        scorer = open_reward(inner.strip(), device, **options)
        if kind == "inside":
            return InsideMask(scorer, least, shown_name(name.strip()))
        return ShareWeighted(scorer, rest=kind == "rest_share")
    if re.match(r"\s*(inside|mask_share|rest_share)\(", name):
        raise InputError(f"reward {shown_name(name)!r}: expected a closing parenthesis, as in inside(CLIP)")
    if name == Boundary.name:
        return Boundary()
    if name == Preservation.name:
        return Preservation()
    if name.startswith(("http://", "https://")):
        url, _, model = name.partition("#")
        if url.rstrip("/").endswith(PATH):
            return RegionServerReward(url, model)
        return imagereward.connect(url, model or None)
    return imagereward.load(name, device, **options)


def shown_name(name: str) -> str:
    """A reward's name for logs and tables: without the user name and the password of a server's address."""
    return _USER.sub(r"\1", name)


def by_shown_name(names: Iterable[str]) -> dict[str, str]:
    """{shown name: name}. Raises InputError for two names that differ in a user or a password alone."""
    found: dict[str, str] = {}
    for name in names:
        shown = shown_name(name)
        if found.setdefault(shown, name) != name:
            raise InputError(
                f"two rewards are named {shown}, with different users: expected each server and model once"
            )
    return found
