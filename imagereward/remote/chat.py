"""Requests and answers of the chat completions protocol of OpenAI, with images in the text's place."""

import base64
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from imagereward.images.reading import ImageLike, read_image
from imagereward.models.vlm.asking.templates import Template
from imagereward.remote import protocol

# The first bytes of formats that every such server reads -> their media type.
FORMATS = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}
MOST_LISTED = 20  # top log-probabilities that the protocol allows
# Where a mark begins to which a model may give a meaning: <|im_end|>, <start_of_turn>, </s>, [INST].
MARKS = re.compile(r"<(?=[|\uff5c]|/?[A-Za-z_][\w.:-]*>)|\[(?=/?[A-Z_]+\])")


class Reply(NamedTuple):
    """An answer's text, and the log-probabilities of likely first tokens by text; None where it has none."""

    text: str
    first: Mapping[str, float] | None


def as_data(prompt: str) -> str:
    """The prompt with a space in each mark of a usual form, such as "< |im_end|>", so that it is plain text.

    The server's tokenizer is not known: marks of other forms stay as they are.
    """
    return MARKS.sub(r"\g<0> ", prompt)


def data_url(image: ImageLike, index: int) -> str:
    """The image as a data: URL: PNG and JPEG as they are, others as PNG."""
    encoded = protocol.encode(image, index)
    kind = next((kind for start, kind in FORMATS.items() if encoded.startswith(start)), None)
    if kind is None:
        encoded, kind = protocol.encode(read_image(image, index).convert("RGB"), index), "image/png"
    return f"data:{kind};base64,{base64.b64encode(encoded).decode()}"


def request_of(
    template: Template, model: str, prompt: str, urls: Sequence[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The body of POST /chat/completions: the template's turns with the prompt, `as_data`, and the images.

    urls     the images' data: URLs, one for each place
    options  further fields, such as max_tokens and temperature
    """
    prompt, images = as_data(prompt), iter(urls)
    content = [
        {"type": "image_url", "image_url": {"url": next(images)}}
        if part is None
        else {"type": "text", "text": part}
        for part in template.parts(prompt)
    ]
    system = template.system.replace("{prompt}", prompt)
    turns: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    return {"model": model, "messages": [*turns, {"role": "user", "content": content}], **options}


def replies_of(body: Any) -> list[Reply]:
    """The replies in an answer; ValueError, without the answer's content, for another form."""
    try:
        return [_reply(choice) for choice in body["choices"]]
    except (TypeError, KeyError, AttributeError, IndexError, ValueError):
        raise ValueError("no chat completion") from None


def _reply(choice: Mapping[str, Any]) -> Reply:
    text = choice["message"].get("content") or ""
    listed = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs")
    if not listed:
        return Reply(str(text), None)
    return Reply(str(text), {str(each["token"]): float(each["logprob"]) for each in listed})


def usage_of(body: Any) -> tuple[int, int]:
    """(tokens read, tokens written) as the server counts them; 0 where it does not say."""
    usage = body.get("usage") if isinstance(body, dict) else None
    counted = usage if isinstance(usage, dict) else {}
    read, written = (counted.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return int(read) if isinstance(read, int) else 0, int(written) if isinstance(written, int) else 0


def probability(first: Mapping[str, float], answers: Sequence[str]) -> float:
    """The sum of the answers' probabilities among the likely first tokens; NaN if none of them is listed.

    Of several answers, one that is not listed counts as 0, at most one listed token's probability too low.
    """
    found = [math.exp(value) for token, value in first.items() if token in answers]
    return sum(found) if found else math.nan
