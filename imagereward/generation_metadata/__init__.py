"""Reads the prompt that an image was generated from: in a text file beside the image or in its metadata.

PNG text, EXIF, XMP, comments, text files and members of archives go through the same readers. An ambiguous
prompt is an error; the readers never guess, and never return the negative prompt.
"""

import io
import os
from typing import Literal, get_args

from imagereward.errors import InputError
from imagereward.generation_metadata.carriers import read_entries
from imagereward.generation_metadata.entries import Claim, UnclearPrompt
from imagereward.generation_metadata.interpret import read_claims
from imagereward.generation_metadata.markup import strip_markup
from imagereward.generation_metadata.sidecars import SIDECARS, open_regular, read_sidecars, read_text
from imagereward.images.encoded import in_home

__all__ = ["SIDECARS", "Markup", "check_markup", "prompt_of", "prompt_of_text"]

# Whether weights, LoRA tags, BREAK and schedules are removed from prompts that generators wrote.
Markup = Literal["strip", "keep"]

# Most characters of a prompt, which also bounds the work on hostile files.
MOST_CHARACTERS = 50_000


def check_markup(markup: str) -> Markup:
    """`markup` if it is "strip" or "keep"; else InputError."""
    if markup not in get_args(Markup):
        raise InputError(f"markup={markup!r}: expected 'strip' or 'keep'")
    return markup  # type: ignore[return-value]


def prompt_of(source: str | os.PathLike | bytes, markup: Markup = "strip", name: str = "") -> str:
    """The prompt of an image.

    source   a path, or an encoded image
    markup   "strip" (default) removes weights, LoRA tags, BREAK and schedules; "keep" leaves them
    name     of the image in messages; default: its path

    A caption beside an image at a path (`x.txt`, `x.caption`) comes first. Without one, all metadata that a
    generator wrote, beside the image and inside it, must state the same prompt. Raises InputError if there is
    no prompt or if it is ambiguous.
    """
    captions: dict[str, str] = {}
    claims: list[Claim] = []
    problems: list[str] = []
    advice = "a table with a column of prompts (--prompt-column)"
    if not isinstance(source, bytes):
        path = in_home(source)
        name = name or str(source)
        advice = f"write the prompt into {path.with_suffix('.txt').name} beside it, or use {advice}"
    else:
        name = name or "the image"
        advice = f"add a caption (key.txt) to the archive, or use {advice}"
    try:
        if not isinstance(source, bytes):
            captions, claims, problems = read_sidecars(path)
        if captions:
            return _the_one(captions)
        inside, unclear = _read_inside(source)
        return _agreed([*claims, *inside], [*problems, *unclear], markup)
    except UnclearPrompt as error:
        raise InputError(f"{name} has no prompt that is certain: {error}; {advice}") from error
    except LookupError:
        raise InputError(
            f"{name} has no prompt: there is none in its metadata, nor in a file beside it; {advice}"
        ) from None


def prompt_of_text(text: str, markup: Markup = "strip") -> str:
    """The prompt in a caption's text: plain words unchanged, or the prompt in a generator's infotext or JSON.

    Raises InputError for a generator's text whose prompt is ambiguous.
    """
    try:
        caption, claim = read_text(text)
        if claim is not None:
            return _agreed([claim._replace(place="caption")], [], markup)
        return caption if caption and caption != text.strip() else text
    except UnclearPrompt as error:
        raise InputError(f"the caption holds no prompt that is certain: {error}") from error


def _read_inside(source: str | os.PathLike | bytes) -> tuple[list[Claim], list[str]]:
    """(prompts that the image's metadata state, problems with other metadata)."""
    if isinstance(source, bytes):
        return read_claims(read_entries(io.BytesIO(source)))
    try:
        with open_regular(in_home(source)) as stream:
            return read_claims(read_entries(stream))
    except OSError as error:
        raise UnclearPrompt(f"the file cannot be read: {error}") from error


def _the_one(captions: dict[str, str]) -> str:
    """The caption that all caption files beside the image state; UnclearPrompt if they differ."""
    if len(set(captions.values())) > 1:
        raise UnclearPrompt(f"captions beside the image differ: {' and '.join(captions)}")
    return next(iter(captions.values()))


def _agreed(claims: list[Claim], problems: list[str], markup: Markup) -> str:
    """The prompt that all claims state. UnclearPrompt if they differ; LookupError if there is nothing."""
    found: dict[str, tuple[Claim, str]] = {}
    for claim in claims:
        try:
            if len(claim.prompt) > MOST_CHARACTERS:
                raise UnclearPrompt(f"the prompt has {len(claim.prompt)} characters")
            words = strip_markup(claim)
        except UnclearPrompt as error:
            if markup == "strip":
                problems = [*problems, f"{claim.place}: {error}"]
                continue
            words = claim.prompt
        found.setdefault(" ".join(words.split()), (claim, words))
    if len(found) > 1:
        stated = "; ".join(f"{claim.place}: {words[:60]!r}" for claim, words in found.values())
        raise UnclearPrompt(f"metadata state different prompts ({stated})")
    if found:
        ((claim, words),) = found.values()
        return words if markup == "strip" else claim.prompt
    if problems:
        raise UnclearPrompt("; ".join(problems)[:600])
    raise LookupError
