"""Answers POST /calculate_reward: the terms of the reward of an inpainted image, its mask and its prompt."""

import asyncio
import traceback
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from fastapi import Request

from imagereward.errors import ImageRewardError
from imagereward.images.image_size import ImageSize
from imagereward.images.processor import bytes_of
from imagereward.images.row_pictures import WHITE, open_pictures
from imagereward.rewards.inpainting import least_of
from imagereward.rewards.region import Box, boundary_of_picture, grown
from imagereward.scoring.scorer import Scorer
from imagereward.serve.admission import RESERVATION, Reservation
from imagereward.serve.answers import complete
from imagereward.serve.batching import ScoringRequest
from imagereward.serve.limits import Refused
from imagereward.serve.parsing.bodies import read
from imagereward.serve.parsing.images import check_resized, check_sizes
from imagereward.serve.parsing.questions import RegionQuestion

# Term of the answer -> what the name of its default model begins with.
MODELS = {"hps_score": "hps", "clip_score": "clip"}


class Prepared(NamedTuple):
    """The terms that need no model, and the requests for the others by term."""

    terms: dict[str, float]
    requests: dict[str, ScoringRequest]


async def region_rewards(state: Any, request: Request) -> dict[str, float]:
    """{boundary_score, hps_score, clip_score, mask_ratio} of the request's image.

    state   the app's `ServerState`

    Raises Refused: 404 if no model of a term is served, 422 for pictures that cannot be read or are of
    different sizes, and for a mask that is empty or white everywhere.
    """
    reservation: Reservation = request.scope[RESERVATION]
    content_type = request.headers.get("content-type", "")
    prepared = await asyncio.get_running_loop().run_in_executor(
        state.threads, _prepare_or_refuse, state, reservation, content_type
    )
    if isinstance(prepared, Refused):
        raise prepared
    waiting = [asyncio.wrap_future(state.batcher.submit(each)) for each in prepared.requests.values()]
    try:
        scores = await asyncio.gather(*waiting)
    except Exception as error:
        for each in waiting:
            each.cancel()
        traceback.clear_frames(error.__traceback__)  # the frames hold the images of a whole batch
        raise
    return prepared.terms | {
        term: complete(score)[0] for term, score in zip(prepared.requests, scores, strict=True)
    }


def _prepare_or_refuse(state: Any, reservation: Reservation, content_type: str) -> Prepared | Refused:
    """`_prepare`; Refused is returned, since a future that raises it would keep the body in memory."""
    try:
        return _prepare(state, reservation, content_type)
    except Refused as refused:
        return refused.alone()


def _prepare(state: Any, reservation: Reservation, content_type: str) -> Prepared:
    question = read(RegionQuestion, reservation.body(), content_type, [], state.limits)
    assert isinstance(question, RegionQuestion)
    names = {
        "hps_score": _model(state.scorers, question.hps_model, "hps_score"),
        "clip_score": _model(state.scorers, question.clip_model, "clip_score"),
    }
    for name in names.values():
        if fault := state.scorers[name].prompt_fault(question.prompt):
            raise Refused(422, fault)
    reservation.take("images", len(question.images) - 1)
    check_sizes(question.images, state.limits)
    row = SimpleNamespace(image=question.image_b_base64, mask=question.mask_base64)
    try:
        picture, grey = open_pictures(row, ("image", "mask"), "the request")
    except (ImageRewardError, ValueError) as error:
        raise Refused(422, str(error)) from error
    reservation.give("bytes")
    mask = grey.convert("L").point([0] * WHITE + [255] * (256 - WHITE))
    bounds, size = mask.getbbox(), ImageSize(picture.height, picture.width)
    assert bounds is not None  # `open_pictures` refuses a mask without white
    left, top, right, bottom = bounds
    requests = {}
    for term, name in names.items():
        scorer: Scorer = state.scorers[name]
        box = grown(Box(top, left, bottom, right), least_of(scorer), size)
        crop = picture.crop((box.left, box.top, box.right, box.bottom))
        check_resized(0, crop.width, crop.height, scorer.processors, state.limits)
        try:
            loaded = tuple(processor.load(crop) for processor in scorer.processors)
        except (ImageRewardError, ValueError) as error:
            raise Refused(422, f"the part of the image around its mask: {error}") from error
        reservation.take_decoded(sum(map(bytes_of, loaded)))
        requests[term] = ScoringRequest(name, [question.prompt], [loaded], torch.tensor([[0, 0]]))
    ratio = mask.histogram()[255] / (mask.width * mask.height)
    terms = {"boundary_score": boundary_of_picture(picture, mask), "mask_ratio": ratio}
    return Prepared(terms, requests)


def _model(scorers: Mapping[str, Scorer], asked: str | None, term: str) -> str:
    """The name of the scorer of a term: the one that was asked for, or the first whose name tells."""
    if asked is not None and asked in scorers:
        return asked
    begins = MODELS[term]
    found = [name for name in scorers if name.lower().startswith(begins)]
    if asked is not None or not found:
        what = f"no model named {begins}..." if asked is None else f"no model {asked[:100]!r}"
        raise Refused(404, f"{what} here, for {term}; there are: {', '.join(scorers)}")
    return found[0]
