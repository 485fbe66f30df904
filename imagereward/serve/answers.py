"""Pydantic models of the server's answers, which make their JSON and their documentation."""

import math
from typing import Any

import torch
from pydantic import BaseModel, Field

from imagereward.serve.limits import Refused

UNREADABLE = "the judge gave no verdict that can be read, so there is no score"


class Answer(BaseModel):
    """Fields of every answer with scores: the model's name, and how much of each prompt it read."""

    model: str
    tokens: list[int] = Field(
        description="Tokens of each prompt before truncation; 0 if the model reads no prompts."
    )
    truncated: list[bool] = Field(description="For each prompt, whether it was longer than the model reads.")


class ScoreAnswer(Answer):
    """One score a pair, in the order of the pairs."""

    scores: list[float | None] = Field(description="null for a pair without a score.")
    errors: dict[str, str] = Field({}, description="Index of a pair without a score -> the reason.")


class RankAnswer(Answer):
    """One score an image, in the order of the images."""

    scores: list[float]
    ranks: list[int] = Field(description="Rank of each image, 1 the best; equal scores share a rank.")
    order: list[int] = Field(description="Indices of the images, best first.")


class MatrixAnswer(Answer):
    """scores[m][n] is the score of prompt m with image n."""

    scores: list[list[float | None]] = Field(
        description="null where a judge gave no verdict that can be read."
    )


class SimpleAnswer(BaseModel):
    """The score of one image for one prompt."""

    score: float


class RegionAnswer(BaseModel):
    """The terms of the reward of an inpainted image."""

    boundary_score: float = Field(description="-|edges inside the mask's boundary - edges outside|.")
    hps_score: float = Field(description="Of the mask's bounding box, grown to the model's size.")
    clip_score: float = Field(description="Of the same box.")
    mask_ratio: float = Field(description="Share of the image that the mask covers, in (0, 1).")


class ModelCard(BaseModel):
    """One served scorer: its name, kind, prompt length, precision and device."""

    name: str
    kind: str
    scores: str = Field(description="Meaning of a score; empty if unknown.")
    max_length: int = Field(description="Tokens that the model reads of a prompt.")
    dtype: str
    device: str


class ModelsAnswer(BaseModel):
    """The served scorers, the default first, and the server's limits."""

    models: list[ModelCard]
    limits: dict[str, int]


class HealthAnswer(BaseModel):
    """State of the model thread: "ok", or that it has stopped."""

    status: str


class Fault(BaseModel):
    """Body of an error: the reason, and the faults of single images."""

    detail: str
    images: dict[str, str] = Field({}, description="Index of a faulty image -> its fault.")


def numbers(scores: torch.Tensor) -> list[Any]:
    """The scores as (nested) lists, with None for NaN, which JSON lacks."""
    if scores.ndim > 1:
        return [numbers(row) for row in scores]
    return [None if math.isnan(score) else score for score in scores.tolist()]


def reasons(scores: torch.Tensor) -> dict[str, str]:
    """The `errors` of a `ScoreAnswer` with scores [P]."""
    return {str(row): UNREADABLE for row in scores.isnan().nonzero().flatten().tolist()}


def complete(scores: torch.Tensor) -> list[float]:
    """The scores [N] of N images; Refused, 422 naming the images, where one has none."""
    if faults := reasons(scores):
        raise Refused(422, UNREADABLE, images={int(index): reason for index, reason in faults.items()})
    return scores.tolist()
