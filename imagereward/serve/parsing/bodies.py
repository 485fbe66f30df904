"""Parses a request's body, in one of three formats, into a question. Runs in threads beside the event loop.

A body is JSON with images in base64, a multipart form with images as files, or one .npy array of images
with the other fields in the query string. The same pydantic models check the fields of all three. Sizes and
counts are checked on the bytes, because parsed objects take up to fifty times as much memory.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header

from imagereward.serve.limits import Limits, Refused
from imagereward.serve.parsing.forms import fields_of, text_of
from imagereward.serve.parsing.images import NPY_MAGIC, array_of
from imagereward.serve.parsing.json_bounds import JsonBounds, check_json
from imagereward.serve.parsing.questions import AnyQuestion, JsonQuestion

NPY_TYPE = "application/x-npy"
# Fields of a multipart form or a query that may be repeated, once for each item.
REPEATED = ("images", "prompts")
MOST_MEMBERS = 64  # fields of a JSON body; training code sends fields of its own to /score
MOST_DEPTH = 8  # levels of nesting in a JSON body; the questions need three
PAIR_BYTES = 32  # bytes of a pair in JSON, with spaces


def read(
    question_class: type[AnyQuestion],
    body: bytes,
    content_type: str,
    query: Sequence[tuple[str, str]],
    limits: Limits,
) -> AnyQuestion:
    """Parse `body` into a question of the class `question_class`.

    content_type   the request's header, which names the format
    query          (name, value) pairs of the URL: fields that go with an .npy body

    Raises Refused: 400 for a body that does not follow its format, 413 beyond limits, 415 for another
    format, 422 for fields that are missing, unknown or of the wrong type.
    """
    name, options = parse_options_header(content_type)
    fields: dict[str, Any] = {}
    if name == b"application/json":
        check_json(body, "the body", _json_bounds(limits))
    elif issubclass(question_class, JsonQuestion):
        raise Refused(415, "expected Content-Type: application/json")
    elif name == b"multipart/form-data":
        fields = _form(body, options.get(b"boundary", b""), limits)
    elif name == NPY_TYPE.encode():
        given = _gathered((key, _value(key, value.encode(), limits)) for key, value in query)
        fields = {**given, "images": _array("the body", body, limits)}
    else:
        formats = f"application/json, multipart/form-data or {NPY_TYPE}"
        raise Refused(415, f"Content-Type is {content_type[:200]!r}; expected {formats}")
    try:
        if name == b"application/json":
            question = question_class.model_validate_json(body)
        else:
            question = question_class.model_validate(fields)
    except ValidationError as error:
        refused = _refused(error)
    else:
        _check(question, limits)
        return question
    raise refused  # outside `except`: as its context, the ValidationError would keep the body in memory


def _json_bounds(limits: Limits) -> JsonBounds:
    values = limits.images + limits.prompts + 3 * limits.pairs + 2 * MOST_MEMBERS
    quotes = 2 * (values + MOST_MEMBERS) + limits.prompts * limits.characters
    return JsonBounds(MOST_DEPTH, values, MOST_MEMBERS, quotes, limits.characters)


def _refused(error: ValidationError) -> Refused:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    if faults[0]["type"] == "json_invalid":
        return Refused(400, f"the body is not JSON: {faults[0]['msg']}")
    reasons = [
        "".join(f"[{part}]" if isinstance(part, int) else f".{part:.100}" for part in fault["loc"]).lstrip(
            "."
        )
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
        raise Refused(413, f"{count} {what} in one request; this server takes at most {most}")


def _most_bytes(name: str, limits: Limits) -> int:
    """The most bytes that one value of the form or query field `name` may have."""
    if name == "images":
        return limits.body
    return PAIR_BYTES * limits.pairs if name == "pairs" else 4 * limits.characters


def _value(name: str, value: bytes, limits: Limits) -> Any:
    """A form's or query's value: image bytes, parsed `pairs`, or text; Refused 400 if it is not UTF-8."""
    if name == "images":
        return value
    text = text_of(f"{name:.100}", value)
    if name != "pairs":
        return text
    check_json(value, "`pairs`", JsonBounds(2, 3 * limits.pairs + 2, 0, 0, 0))
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(422, f"pairs: is not JSON: {error}") from error


def _gathered(fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """{name: value}, with lists for `REPEATED` names; Refused 422 for any other name that comes twice."""
    gathered: dict[str, Any] = {}
    for name, value in fields:
        if name in REPEATED:
            gathered.setdefault(name, []).append(value)
        elif name in gathered:
            raise Refused(422, f"{name:.100}: given twice")
        else:
            gathered[name] = value
    return gathered


def _form(body: bytes, boundary: bytes, limits: Limits) -> dict[str, Any]:
    """The fields of a multipart form. A file that starts with the .npy signature is an array of images."""
    most = limits.images + limits.prompts + 2
    fields = fields_of(body, boundary, most, lambda name: _most_bytes(name, limits))
    gathered = _gathered((name, _value(name, value, limits)) for name, value in fields)
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
