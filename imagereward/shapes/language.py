"""The grammar of Shapes: writes requests as sentences (`say`) and parses sentences (`read`)."""

import re

import numpy as np

from imagereward.errors import InputError
from imagereward.shapes.scene import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES, Group, SceneRequest

NUMBERS = {1: ("a", "an", "one"), 2: ("two",), 3: ("three",), 4: ("four",)}
_PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
_FRAMES = ("{}", "{}", "a picture of {}", "an image of {}", "a drawing of {}", "{} drawn simply")
# {0} is the first group, {1} the second; the key is the relation of the first to the second.
_RELATION_PHRASES = {
    "left of": ("{0} left of {1}", "{0} to the left of {1}", "{1} with {0} on its left"),
    "right of": ("{0} right of {1}", "{0} to the right of {1}", "{1} with {0} on its right"),
    "above": ("{0} above {1}", "{0} over {1}", "{1} with {0} above it"),
    "below": ("{0} below {1}", "{0} under {1}", "{1} with {0} below it"),
}
_BACKGROUND_PHRASES = ("{} on a {} background", "{}, {} background", "{} in front of a {} background")
_POSITION_PHRASES = {
    place: (
        ("in the {} corner",)
        if " " in place
        else ("in the center", "in the middle")
        if place == "center"
        else ("at the {}",)
        if place in ("top", "bottom")
        else ("on the {} side",)
    )
    for place in POSITIONS
}
_EXAMPLE = "two red circles and a blue star on a white background"

_GROUP = re.compile(
    r"\b(an?|one|two|three|four) (?:(small|large) )?"
    rf"({'|'.join(COLOURS)}) ({'|'.join([*_PLURALS.values(), *SHAPES])})\b"
)
_RELATION = (
    (re.compile(r"with # on its (left|right)"), True),
    (re.compile(r"with # (above|below) it"), True),
    (re.compile(r"# (?:to the )?(left|right) of #"), False),
    (re.compile(r"# (above|over|below|under) #"), False),
)
_RELATION_NAMES = {"left": "left of", "right": "right of", "over": "above", "under": "below"}
_BACKGROUND = re.compile(rf"\b({'|'.join(BACKGROUNDS)}) background$")
_KNOWN = re.compile(
    r"(?:an? (?:picture|image|drawing) of )?"
    r"#(?:(?:, #)* and #| (?:(?:to the )?(?:left|right) of|above|over|below|under) #"
    r"| with # (?:on its (?:left|right)|(?:above|below) it))?"
    r"(?: in the (?:(?:top|bottom) (?:left|right) corner|center|middle)| at the (?:top|bottom)"
    r"| on the (?:left|right) side)?"
    r"(?: drawn simply)?"
    rf"(?:(?: on a| in front of a|,) (?:{'|'.join(BACKGROUNDS)}) background)?"
)


def say(request: SceneRequest, rng: np.random.Generator) -> str:
    """A sentence for the request, in one of several phrasings that `rng` chooses."""
    groups = [_phrase(group, rng) for group in request.groups]
    if request.relation:
        text = _pick(_RELATION_PHRASES[request.relation], rng).format(*groups)
    elif len(groups) == 1:
        text = groups[0]
    else:
        text = ", ".join(groups[:-1]) + " and " + groups[-1]
    if request.position:
        text += " " + _pick(_POSITION_PHRASES[request.position], rng).format(request.position)
    text = _pick(_FRAMES, rng).format(text)
    if request.background:
        text = _pick(_BACKGROUND_PHRASES, rng).format(text, request.background)
    return text


def read(prompt: str) -> SceneRequest:
    """Parse a prompt into its request; InputError for a prompt outside the grammar."""
    text = " ".join(prompt.lower().strip(" .").split())
    found = _GROUP.findall(text)
    outline = _GROUP.sub("#", text)
    if not found or not _KNOWN.fullmatch(outline):
        raise InputError(f"{prompt!r} is no prompt about shapes; expected one like {_EXAMPLE!r}")
    groups = [_group(number, size, colour, noun, prompt) for number, size, colour, noun in found]
    relation = position = None
    for pattern, inverse in _RELATION:
        if match := pattern.search(outline):
            relation = _RELATION_NAMES.get(match[1], match[1])
            groups = groups[::-1] if inverse else groups
    for place, phrases in _POSITION_PHRASES.items():
        if any(phrase.format(place) in outline for phrase in phrases):
            position = place
    background = _BACKGROUND.search(outline)
    return SceneRequest(tuple(groups), relation, position, background[1] if background else None)


def vocabulary() -> list[str]:
    """All words that `say` uses, sorted."""
    words = set(",") | {word for words in NUMBERS.values() for word in words}
    words |= {*COLOURS, *SHAPES, *_PLURALS.values(), *SIZES, *BACKGROUNDS, "and"}
    phrases = [*_FRAMES, *_BACKGROUND_PHRASES, *POSITIONS]
    for group in (*_RELATION_PHRASES.values(), *_POSITION_PHRASES.values()):
        phrases += group
    for phrase in phrases:
        words |= set(re.findall(r"[a-z]+", phrase))
    return sorted(words)


def _phrase(group: Group, rng: np.random.Generator) -> str:
    noun = group.shape if group.count == 1 else _PLURALS[group.shape]
    number = NUMBERS[group.count][0 if rng.random() < 0.85 else -1]
    return " ".join(word for word in (number, group.size, group.colour, noun) if word).replace(
        "a orange", "an orange"
    )


def _group(number: str, size: str, colour: str, noun: str, prompt: str) -> Group:
    count = next(n for n, words in NUMBERS.items() if number in words)
    singular = next(shape for shape in SHAPES if noun in (shape, _PLURALS[shape]))
    if (count > 1) != (noun == _PLURALS[singular]):
        raise InputError(f"{prompt!r}: {number!r} and {noun!r} do not agree")
    return Group(count, colour, singular, size or None)


def _pick(phrases, rng: np.random.Generator) -> str:
    return phrases[rng.integers(len(phrases))]
