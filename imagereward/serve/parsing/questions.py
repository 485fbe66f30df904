"""Pydantic models of the requests: they check the fields of a body and document them."""

from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from imagereward.serve.limits import Refused
from imagereward.serve.parsing.base64_images import bytes_of


def _from_base64(value: Any) -> bytes | np.ndarray:
    if isinstance(value, (bytes, np.ndarray)):  # from a form's file or an .npy array: already decoded
        return value
    if not isinstance(value, str):
        raise ValueError(f"is a {type(value).__name__}; expected an image file in base64")
    return bytes_of(value)


EncodedImage = Annotated[
    Any,
    PlainValidator(_from_base64),
    WithJsonSchema({"type": "string", "contentEncoding": "base64", "description": "An image file."}),
]
Index = Annotated[int, Field(strict=True, ge=0)]


class Question(BaseModel):
    """Fields of every request of /v1; the subclasses add those of one path."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(None, description="A name from /v1/models; default: the first of them.")
    images: list[EncodedImage] = Field(min_length=1, fail_fast=True)

    def texts(self) -> list[str]:
        """The prompts; subclasses define where they are."""
        raise NotImplementedError

    def rows(self) -> list[tuple[int, int]]:
        """The (image, prompt) indices of every requested score."""
        return [(image, prompt) for prompt in range(len(self.texts())) for image in range(len(self.images))]


class ScoreQuestion(Question):
    """Prompts with images: one score for each pair."""

    prompts: list[str] = Field(min_length=1, fail_fast=True)
    pairs: list[tuple[Index, Index]] | None = Field(
        None,
        min_length=1,
        fail_fast=True,
        description="[image, prompt] indices of each score; default: image i with prompt i.",
    )

    def texts(self) -> list[str]:
        """The prompts."""
        return self.prompts

    def rows(self) -> list[tuple[int, int]]:
        """`pairs`, or (i, i) for each i; Refused 422 for an index that is out of range."""
        images, prompts = len(self.images), len(self.prompts)
        if self.pairs is None:
            if images != prompts:
                raise Refused(
                    422, f"{prompts} prompts and {images} images: expected as many of each, or `pairs`"
                )
            return [(index, index) for index in range(images)]
        for row, (image, prompt) in enumerate(self.pairs):
            if image >= images or prompt >= prompts:
                raise Refused(
                    422, f"pairs[{row}] is [{image}, {prompt}], of {images} images and {prompts} prompts"
                )
        return self.pairs


class RankQuestion(Question):
    """One prompt, and images to rank for it."""

    prompt: str

    def texts(self) -> list[str]:
        """The prompt, as a list."""
        return [self.prompt]


class MatrixQuestion(Question):
    """Prompts and images, of which every prompt is scored with every image."""

    prompts: list[str] = Field(min_length=1, fail_fast=True)

    def texts(self) -> list[str]:
        """The prompts."""
        return self.prompts


class JsonQuestion(BaseModel):
    """A question that comes as JSON only, as existing training code sends it; other keys are ignored."""

    prompt: str
    model: str | None = None

    @property
    def images(self) -> list:
        """The pictures; subclasses define which."""
        raise NotImplementedError

    def texts(self) -> list[str]:
        """The prompt, as a list."""
        return [self.prompt]

    def rows(self) -> list[tuple[int, int]]:
        """The single pair (0, 0)."""
        return [(0, 0)]


class SimpleQuestion(JsonQuestion):
    """One image and one prompt, as existing training code sends them; other keys are ignored."""

    image_base64: EncodedImage

    @property
    def images(self) -> list:
        """The image, as a list."""
        return [self.image_base64]


class RegionQuestion(JsonQuestion):
    """A painted image, its mask and its prompt, as existing training code sends them."""

    image_b_base64: EncodedImage
    mask_base64: EncodedImage
    hps_model: str | None = Field(None, description="Default: the first served model named HPS...")
    clip_model: str | None = Field(None, description="Default: the first served model named CLIP...")

    @property
    def images(self) -> list:
        """The image and the mask."""
        return [self.image_b_base64, self.mask_base64]


AnyQuestion = Question | JsonQuestion
