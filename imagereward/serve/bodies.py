"""From a request's body, in one of three formats, to what is asked. Runs in threads beside the event loop.

A body is JSON with images in base64, a multipart form with images as files, or one .npy array of images
with the rest in the query string. All three become the same fields, checked by the same models.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header

from imagereward.serve.limits import Limits, Refused
from imagereward.serve.pictures import NPY_MAGIC, array_of

NPY_TYPE = "application/x-npy"
# Of a multipart form: these may come several times, each time with one more.
REPEATED = ("images", "prompts")
MOST_FAULTS = 100  # that are looked at one by one


def _from_base64(value: Any) -> bytes | np.ndarray:
    if isinstance(value, (bytes, np.ndarray)):  # a file of a form, an image of an array
        return value
    if not isinstance(value, str):
        raise ValueError(f"is a {type(value).__name__}; expected an image file in base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"is not base64: {error}") from error


EncodedImage = Annotated[
    Any,
    PlainValidator(_from_base64),
    WithJsonSchema({"type": "string", "contentEncoding": "base64", "description": "An image file."}),
]
Index = Annotated[int, Field(strict=True, ge=0)]


class Question(BaseModel):
    """What every request may say; the subclasses are the verbs' bodies."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(None, description="A name from /v1/models; default: the first.")
    images: list[EncodedImage] = Field(min_length=1, fail_fast=True)

    def texts(self) -> list[str]:
        """The prompts, which every verb has in its own way."""
        raise NotImplementedError

    def rows(self) -> list[tuple[int, int]]:
        """(image, prompt) of every score that is asked for."""
        return [(image, prompt) for prompt in range(len(self.texts())) for image in range(len(self.images))]


class ScoreQuestion(Question):
    """Prompts with images: one score a pair."""

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
        """The pairs; Refused 422 if one names what is not there."""
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
    """One prompt, images to be ordered."""

    prompt: str

    def texts(self) -> list[str]:
        """A list of one."""
        return [self.prompt]


class MatrixQuestion(Question):
    """Every prompt with every image."""

    prompts: list[str] = Field(min_length=1, fail_fast=True)

    def texts(self) -> list[str]:
        """The prompts."""
        return self.prompts


class SimpleQuestion(BaseModel):
    """One image and one prompt, as existing training code sends them; other keys are ignored."""

    image_base64: EncodedImage
    prompt: str
    model: str | None = None

    @property
    def images(self) -> list:
        """A list of one."""
        return [self.image_base64]

    def texts(self) -> list[str]:
        """A list of one."""
        return [self.prompt]

    def rows(self) -> list[tuple[int, int]]:
        """The one pair."""
        return [(0, 0)]


AnyQuestion = Question | SimpleQuestion


def read(
    kind: type[AnyQuestion], body: bytes, content_type: str, query: Sequence[tuple[str, str]], limits: Limits
) -> AnyQuestion:
    """What `body` asks.

    Raises Refused: 400 for what is not of its format, 413 beyond limits, 415 for another format,
    422 for fields that are missing, unknown or of the wrong type.
    """
    name, options = parse_options_header(content_type)
    try:
        if name == b"application/json":
            # A body of commas alone would take many times its size in memory.
            _at_most(2 * limits.pairs + limits.prompts * limits.characters, body.count(b","), "commas")
            question = kind.model_validate_json(body)
        elif kind is SimpleQuestion:
            raise Refused(415, "expected Content-Type: application/json")
        elif name == b"multipart/form-data":
            question = kind.model_validate(_form(body, options.get(b"boundary", b""), limits))
        elif name == NPY_TYPE.encode():
            images = _array("the body", body, limits)
            question = kind.model_validate({**_gathered(query), "images": images})
        else:
            formats = f"application/json, multipart/form-data or {NPY_TYPE}"
            raise Refused(415, f"Content-Type is {content_type!r}; expected {formats}")
    except ValidationError as error:
        raise _refused(error) from error
    _check(question, limits)
    return question


def _refused(error: ValidationError) -> Refused:
    if error.error_count() > MOST_FAULTS:
        return Refused(422, f"{error.error_count()} faults in one request, beginning with unknown fields")
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    if faults[0]["type"] == "json_invalid":
        return Refused(400, f"the body is not JSON: {faults[0]['msg']}")
    reasons = [
        "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
        + f": {fault['msg'].removeprefix('Value error, ')}"
        for fault in faults[:3]
    ]
    more = f" (+{len(faults) - 3} more)" if len(faults) > 3 else ""
    return Refused(422, "; ".join(reasons) + more)


def _check(question: AnyQuestion, limits: Limits) -> None:
    _at_most(limits.images, len(question.images), "images")
    prompts = question.texts()
    _at_most(limits.prompts, len(prompts), "prompts")
    _at_most(limits.characters, max(map(len, prompts)), "characters in one prompt")
    _at_most(limits.pairs, len(question.rows()), "pairs")


def _at_most(most: int, count: int, what: str) -> None:
    if count > most:
        raise Refused(413, f"{count} {what} in one request; at most {most} are taken here")


def _gathered(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Names and values as the models take them; Refused 422 for a name that comes twice and may not."""
    gathered: dict[str, Any] = {}
    for name, value in fields:
        if name in REPEATED:
            gathered.setdefault(name, []).append(value)
        elif name in gathered:
            raise Refused(422, f"{name}: given twice")
        elif name == "pairs":
            try:
                gathered[name] = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise Refused(422, f"pairs: is not JSON: {error}") from error
        else:
            gathered[name] = value
    return gathered


def _form(body: bytes, boundary: bytes, limits: Limits) -> dict[str, Any]:
    """The fields of a multipart form. A file that begins as .npy does is an array of images."""
    fields: list[tuple[str, Any]] = []
    ended = []

    def add(name: bytes | None, value: Any) -> None:
        # More parts than any request needs: each costs far more memory here than on the wire.
        if len(fields) > limits.images + limits.prompts + 2:
            raise Refused(413, f"more than {len(fields) - 1} parts in one form")
        fields.append((_text("a part's name", name or b""), value))

    def add_text(field) -> None:
        value = field.value or b""
        add(field.field_name, value if field.field_name == b"images" else _text("a field", value))

    def add_file(file) -> None:
        file.file_object.seek(0)
        add(file.field_name, file.file_object.read())

    try:
        parser = FormParser(
            "multipart/form-data",
            add_text,
            add_file,
            lambda: ended.append(True),
            boundary=boundary,
            config={"MAX_MEMORY_FILE_SIZE": limits.body + 1},  # never to disk: the body is in memory already
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refused(400, f"the form cannot be read: {error}") from error
    if not ended:
        raise Refused(400, "the form is cut short: its closing boundary is missing")
    gathered = _gathered(fields)
    gathered["images"] = [
        image
        for place, file in enumerate(gathered.get("images", []))
        for image in (_array(f"file {place}", file, limits) if file.startswith(NPY_MAGIC) else [file])
    ]
    return gathered


def _array(where: str, data: bytes, limits: Limits) -> list[np.ndarray]:
    try:
        array = array_of(data)
    except ValueError as error:
        raise Refused(400, f"{where} {error}") from error
    if array.ndim == 3:
        return [array]
    _at_most(limits.images, len(array), "images")
    return list(array)


def _text(what: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Refused(400, f"{what} is not UTF-8: {error}") from error
