"""Interprets texts found in an image file: turns entries into the prompts that they state."""

import re
from collections.abc import Sequence

from imagereward.generation_metadata.entries import Claim, Entry, UnclearPrompt
from imagereward.generation_metadata.exif import CAMERA_KEY
from imagereward.generation_metadata.webui import looks_like_infotext, read_infotext
from imagereward.generation_metadata.writers import parse_json, read_dream, read_invokeai, read_json

# Fields for prompts: their text is a prompt even without a web UI's settings after it.
PROMPT_FIELDS = {"parameters", "prompt", "positive_prompt", "positive prompt"}
# Fields for any text: a prompt only if the text has a generator's format.
OPEN_FIELDS = {
    "comment",
    "description",
    "imagedescription",
    "usercomment",
    "make",
    "model",
    "xpcomment",
    "generation_data",
}
INVOKEAI_FIELDS = {"invokeai_metadata", "sd-metadata", "dream"}
# ComfyUI writes EXIF values as `prompt:{graph}` and `workflow:{...}`.
PREFIX = re.compile(r"(prompt|parameters|workflow):\s*(?=\{)", re.IGNORECASE)
MEANT_AS_JSON = re.compile(r"\s*(?:\{\s*\"|\[\s*[\"{])")
LIKE_A_NEGATIVE = re.compile(r"\n-[^\n]*$")
# Beginnings of user comments that telephones and image editors write.
NO_PROMPT = ("screenshot", "created with")


def read_claims(entries: Sequence[Entry]) -> tuple[list[Claim], list[str]]:
    """(prompts that the entries state, problems of entries that are unclear or unreadable)."""
    keys = {entry.key.lower() for entry in entries}
    claims: list[Claim] = []
    problems: list[str] = []
    for entry in entries:
        key = entry.key.lower()
        if key and key not in PROMPT_FIELDS | OPEN_FIELDS | INVOKEAI_FIELDS | {"workflow"}:
            continue
        if entry.problem is not None:
            problems.append(f"{entry.place}: {entry.problem}")
            continue
        try:
            claim = _read(entry, keys)
        except UnclearPrompt as error:
            problems.append(f"{entry.place}: {error}")
            continue
        if claim is not None:
            claims.append(claim._replace(place=entry.place))
    if not claims:
        claims = _novelai_description(entries)
    if not claims and not problems and "workflow" in keys:
        problems.append("ComfyUI's workflow is there, and the graph that was run (`prompt`) is not")
    return claims, problems


def _read(entry: Entry, keys: set[str]) -> Claim | None:
    key, text = entry.key.lower(), entry.text
    if key == "workflow" or (key == "dream" and "sd-metadata" in keys):
        return None
    if key == "dream":
        return read_dream(text)
    prefix = PREFIX.match(text)
    if prefix and prefix[1].lower() == "workflow":
        return None
    text = text[prefix.end() :] if prefix else text
    for_prompt = key in PROMPT_FIELDS | INVOKEAI_FIELDS or prefix is not None
    data = parse_json(text)
    if isinstance(data, dict):
        claim = read_invokeai(data) if key == "invokeai_metadata" else read_json(data, key == "parameters")
        if claim is None and for_prompt:
            raise UnclearPrompt(f"JSON in an unknown layout, with the keys {sorted(map(str, data))[:8]}")
        return claim
    if isinstance(data, list) or MEANT_AS_JSON.match(text):
        if for_prompt:
            raise UnclearPrompt("JSON that is damaged, too deeply nested or a list")
        return None
    if looks_like_infotext(text):
        claim = read_infotext(text)
        if key in OPEN_FIELDS and LIKE_A_NEGATIVE.search(claim.prompt):
            raise UnclearPrompt("its last line begins with '-', as Draw Things writes negative prompts")
        return claim
    if key == "parameters":
        return read_infotext(text)  # some web UIs write the prompt without settings
    if key in PROMPT_FIELDS or (key == "usercomment" and _by_a_script(text, keys)):
        if not text.strip():
            raise UnclearPrompt("the prompt is empty")
        return Claim(text.strip(), "plain")
    return None


def _by_a_script(text: str, keys: set[str]) -> bool:
    """Whether a user comment in plain words can be a prompt: nothing hints at a camera or an editor."""
    devices = {"make", "model", CAMERA_KEY}
    return bool(text.strip()) and not text.lower().startswith(NO_PROMPT) and keys.isdisjoint(devices)


def _novelai_description(entries: Sequence[Entry]) -> list[Claim]:
    """Older files of NovelAI: the description is the prompt, and the comment holds the settings."""
    texts = {entry.key.lower(): entry for entry in entries}
    description, comment = texts.get("description"), texts.get("comment")
    data = parse_json(comment.text) if comment else None
    novelai = "NovelAI" in (texts["software"].text if "software" in texts else "")
    if description is None or not description.text.strip():
        return []
    if novelai or (isinstance(data, dict) and "uc" in data and "prompt" not in data):
        return [Claim(description.text.strip(), "novelai", place=description.place)]
    return []
