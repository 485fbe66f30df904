"""Reads infotext, the format of AUTOMATIC1111's web UI, Forge, SD.Next and others.

It holds the positive prompt, a line "Negative prompt: ..." and a line of settings "Steps: 20, Sampler: ...".
"""

import json
import re

from imagereward.generation_metadata.entries import Claim, UnclearPrompt

NEGATIVE = re.compile(r"^[ \t]*Negative prompt:", re.IGNORECASE | re.MULTILINE)
# A line of settings begins with the steps, or with a setting that has a line of its own.
SETTINGS = re.compile(
    r"^[ \t]*(?:Steps: ?\d+[ \t]*(?:[,|]|$)|(?:Seed|Width|Height): ?\d+[ \t]*(?:,|$))", re.MULTILINE
)
# The same within the prompt's line, for texts that lost their line breaks.
NEGATIVE_INSIDE = re.compile(r"(?<=\s)Negative prompt:(?=\s|$)")
SETTINGS_INSIDE = re.compile(r"(?<=\s)Steps: ?\d+, ?(?:Sampler|Schedule type|CFG scale|Seed|Size|Model)\b")
# A line of settings in another order: nothing but settings, at least three of them usual.
SETTING = r"(?>[A-Za-z][\w ./-]{0,40}: ?(?:\"(?:[^\"\\]|\\.)*\"|[^,\n]*))"
USUAL = re.compile(
    r"(?:^|, ?)(?:Sampler|Schedule type|CFG scale|Seed|Size|Model|Model hash|Version|Clip skip|VAE): "
)
LINE_OF_SETTINGS = re.compile(rf"^{SETTING}(?:, ?{SETTING})*+,?$")
LABEL = re.compile(r"^(?:Positive )?Prompt: ", re.IGNORECASE)
STEPS = re.compile(r"\bSteps: ?(\d{1,6})\b")
# Fooocus: the prompt that the user typed; the positive prompt above it also has the keywords of styles.
RAW_PROMPT = re.compile(r'(?:^|, )Raw prompt: ("(?:[^"\\]|\\.)*"|[^,\n]*)')


def looks_like_infotext(text: str) -> bool:
    """Whether a text contains a negative prompt or settings."""
    return _end(text) is not None


def read_infotext(text: str) -> Claim:
    """The positive prompt of an infotext; the whole text if it has no negative prompt and no settings.

    Raises UnclearPrompt for an empty positive prompt.
    """
    end = _end(text)
    prompt, rest = (text, "") if end is None else (text[:end], text[end:])
    if end is not None:
        prompt = LABEL.sub("", prompt.lstrip())
    if typed := RAW_PROMPT.search(rest):
        prompt = _unquoted(typed[1])
    if not prompt.strip():
        raise UnclearPrompt("the positive prompt is empty")
    steps = STEPS.search(rest)
    return Claim(prompt.strip(), "webui", int(steps[1]) if steps else None)


def _end(text: str) -> int | None:
    """The index at which the positive prompt ends; None without negative prompt and settings."""
    patterns = (NEGATIVE, SETTINGS, NEGATIVE_INSIDE, SETTINGS_INSIDE)
    ends = [found.start() for pattern in patterns if (found := pattern.search(text))]
    body = text.rstrip()
    last = body.rfind("\n") + 1
    line = body[last:].strip()
    if USUAL.match(line) and len(USUAL.findall(line)) >= 3 and LINE_OF_SETTINGS.match(line):
        ends.append(last)
    return min(ends, default=None)


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value, strict=False))
    except ValueError as error:
        raise UnclearPrompt("the raw prompt is not a quoted text") from error
