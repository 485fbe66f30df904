"""The prompt of an image that lies in a folder: in a text file beside it, or in the image itself.

Generators write it into the image as AUTOMATIC1111's web UI does (`parameters`: the prompt, then
"Negative prompt:" and settings; in JPEG and WebP, the same as EXIF's user comment), as ComfyUI does
(`prompt`: its graph of nodes as JSON), or plainly, as scripts around diffusers do (`prompt`: the text).
"""

import json
import re
from pathlib import Path
from typing import Any

import PIL.Image

from imagereward.errors import InputError

EXIF, USER_COMMENT = 0x8769, 0x9286
# Where a web UI's prompt ends.
AFTER_PROMPT = re.compile(r"(?:^|\n)(?:Negative prompt:|Steps: \d+,)")
# Inputs of ComfyUI's nodes that hold a prompt, and those that lead on to the node that does.
TEXTS = ("text", "text_g", "t5xxl", "clip_l", "prompt", "string", "value")
LEADS = ("positive", "guider", "conditioning", *TEXTS)


def prompt_of(path: str) -> str:
    """The image's prompt; InputError if there is none. A text file beside the image goes first."""
    beside = Path(path).expanduser().with_suffix(".txt")
    if beside.is_file():
        try:
            return beside.read_text(encoding="utf-8-sig").strip()
        except (OSError, ValueError) as error:
            raise InputError(f"{beside} cannot be read as text: {error}") from error
    with PIL.Image.open(path) as image:
        found = prompt_in(image)
    if found is None:
        raise InputError(
            f"{path} has no prompt: there is no {beside.name} beside it and none in its metadata"
        )
    return found


def prompt_in(image: PIL.Image.Image) -> str | None:
    """The prompt in an image's metadata, if there is one."""
    parameters = image.info.get("parameters") or _user_comment(image)
    if isinstance(parameters, str):
        return AFTER_PROMPT.split(parameters, maxsplit=1)[0].strip()
    prompt = image.info.get("prompt")
    if not isinstance(prompt, str):
        return None
    try:
        graph = json.loads(prompt)
    except (ValueError, RecursionError):
        return prompt.strip()
    return _prompt_of_graph(graph) if isinstance(graph, dict) else prompt.strip()


def _user_comment(image: PIL.Image.Image) -> str | None:
    comment = image.getexif().get_ifd(EXIF).get(USER_COMMENT)
    if not isinstance(comment, bytes):
        return None
    code, text = comment[:8], comment[8:]
    if code == b"UNICODE\0":
        # The web UI writes big-endian; of the other order, the zeros of Latin letters tell.
        little = text[:1] != b"\0" and text[1:2] == b"\0"
        return text.decode("utf-16-le" if little else "utf-16-be", "replace")
    return text.decode("utf-8", "replace") if code == b"ASCII\0\0\0" else None


def _prompt_of_graph(graph: dict[str, Any]) -> str | None:
    """The text that reaches a sampler's positive input, or else a guider's."""
    inputs = {
        key: node["inputs"]
        for key, node in graph.items()
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    for lead in ("positive", "guider", "conditioning"):
        for node in inputs.values():
            if lead in node and (text := _text_at(node[lead], inputs, set())) is not None:
                return text
    return None


def _text_at(value: Any, inputs: dict[str, dict], seen: set[str]) -> str | None:
    """Follow a link `[node, output]` until a node holds text."""
    if isinstance(value, str):
        return value.strip()
    if not (isinstance(value, list) and value and str(value[0]) in inputs) or str(value[0]) in seen:
        return None
    seen.add(str(value[0]))
    node = inputs[str(value[0])]
    found = (_text_at(node[name], inputs, seen) for name in LEADS if name in node)
    return next((text for text in found if text is not None), None)
