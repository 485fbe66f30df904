"""Removes prompt syntax of generators: weights, LoRA tags, BREAK and schedules.

Each dialect removes only the syntax that its program reads: square brackets are weights in a web UI, and
plain characters in ComfyUI.
"""

import re
from dataclasses import dataclass, field

from imagereward.generation_metadata.entries import Claim, UnclearPrompt

# Digits are bounded, and no pattern starts with whitespace: matching hostile text takes linear time.
POSITIVE = r"(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})"
SIGNED = rf"[-+]?{POSITIVE}"
NETWORK_TAG = re.compile(r"<\w+:[^<>\n]*>")  # <lora:name:1>, <hypernet:name:0.5>
COMFYUI_TAG = re.compile(r"<(?:lora|lyco|hypernet|hypernetwork):[^<>\n]*>|\bembedding:[^\s,()]+", re.I)
BREAK = re.compile(r"(?<!\s)\s*\b(?:BREAK|ADDCOMM|ADDBASE|ADDROW|ADDCOL)\b\s*")
AND = re.compile(r"\bAND(_PERP|_SALT|_TOPK)?\b")
WEIGHT_OF_SUBPROMPT = re.compile(rf":\s*({SIGNED})$")
NUMBER = re.compile(rf"\s*{SIGNED}\s*")
WEIGHT = re.compile(rf":\s*{SIGNED}\s*$")
NOVELAI_EMPHASIS = re.compile(rf"(?<![\d.])(-?{POSITIVE})::(.*?)(?:::|$)", re.DOTALL)
INVOKEAI_CALL = re.compile(r"\)\s*\.\s*(?:blend|and)\s*\(|\.swap\s*\(")
INVOKEAI_WEIGHT = re.compile(rf"\)(?:[+-]+|{POSITIVE})|(?<=\w)(?:\++|-+)(?=[\s,.;)]|$)")
INVOKEAI_TAG = re.compile(r"<[\w .-]+>")
MOST_BRACKETS = 100
# SwarmUI's tags with texts of their own: passes after the image (LOCAL) and regions of the image (REGION).
SWARMUI_LOCAL = re.compile(r"<(?:segment|refiner|base|clear|extend|video|videoswap|edit)\b[^<>]*>", re.I)
SWARMUI_REGION = re.compile(r"<(?:region|object)\b[^<>]*>", re.I)
SWARMUI_TAG = re.compile(r"<(?:lora|embed|embedding|param|comment|clear|break)\b[^<>]*>", re.I)
SWARMUI_OTHER = re.compile(r"<(\w+)(?:\[[^\]<>]*\])?(?::[^<>]*)?>")


def strip_markup(claim: Claim) -> str:
    """The words of a prompt without its markup; text without markup is returned unchanged.

    A schedule `[a:b:0.5]` becomes the text of the last step (`b`); alternatives `[a|b]` and parts joined by
    BREAK or AND are joined with ", ". Raises UnclearPrompt for syntax that does not determine the words, and
    for a prompt without words.
    """
    text = _DIALECTS[claim.dialect](claim)
    if text != claim.prompt:
        text = _tidy(text)
    if not text.strip():
        raise UnclearPrompt(f"the prompt {claim.prompt[:80]!r} holds markup and no words")
    return text.strip()


def _plain(claim: Claim) -> str:
    return claim.prompt


def _webui(claim: Claim) -> str:
    text = NETWORK_TAG.sub(" ", claim.prompt)
    text = _brackets(_subprompts(text), claim.steps)
    return BREAK.sub(", ", text)


def _comfyui(claim: Claim) -> str:
    text = _brackets(COMFYUI_TAG.sub(" ", claim.prompt), None, square=False)
    return BREAK.sub(", ", text)


def _novelai(claim: Claim) -> str:
    def words(found: re.Match) -> str:
        return " " if found[1].startswith("-") else found[2]

    return re.sub(r"[{}\[\]]", "", NOVELAI_EMPHASIS.sub(words, claim.prompt))


def _invokeai(claim: Claim) -> str:
    if INVOKEAI_CALL.search(claim.prompt):
        raise UnclearPrompt("InvokeAI blended or swapped several texts (.blend, .and, .swap)")
    text = INVOKEAI_TAG.sub(" ", claim.prompt)
    text = INVOKEAI_WEIGHT.sub(lambda found: ")" if found[0].startswith(")") else "", text)
    return _brackets(text, None, square=False)


def _swarmui(claim: Claim) -> str:
    text = SWARMUI_LOCAL.split(claim.prompt, maxsplit=1)[0]
    if SWARMUI_REGION.search(text):
        raise UnclearPrompt(
            "SwarmUI's prompt has other texts for regions of the picture (<region>, <object>)"
        )
    text = SWARMUI_TAG.sub(" ", text)
    if other := SWARMUI_OTHER.search(text):
        raise UnclearPrompt(f"SwarmUI's tag <{other[1]}> does not say which words were used")
    return BREAK.sub(", ", _brackets(text, None, square=False))


_DIALECTS = {
    "plain": _plain,
    "webui": _webui,
    "comfyui": _comfyui,
    "novelai": _novelai,
    "invokeai": _invokeai,
    "swarmui": _swarmui,
}


def _subprompts(text: str) -> str:
    """`a :1.2 AND b AND c :-1` -> `a, b`: removes weights, and parts of negative weight."""
    found = list(AND.finditer(text))
    if not found:
        return text
    if any(each[1] for each in found):
        raise UnclearPrompt("the prompt has parts joined by AND_PERP, AND_SALT or AND_TOPK")
    starts, ends = [0, *(each.end() for each in found)], [*(each.start() for each in found), len(text)]
    kept = []
    for part in (text[start:end] for start, end in zip(starts, ends)):
        part = part.strip()
        weight = WEIGHT_OF_SUBPROMPT.search(part)
        if weight is None or float(weight[1]) > 0:
            kept.append(part[: weight.start()] if weight else part)
    return ", ".join(part.strip() for part in kept)


@dataclass
class _Group:
    """An open bracket: its parts between top-level separators `:` and `|`, and these separators."""

    bracket: str
    parts: list[list[str]] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The parts and separators as they were written."""
        parts = ["".join(part) for part in self.parts]
        return parts[0] + "".join(map("".join, zip(self.separators, parts[1:])))


def _brackets(text: str, steps: int | None, square: bool = True) -> str:
    """Remove brackets of emphasis and their weights; resolve schedules and alternatives; `\\(` becomes `(`.

    steps    sampling steps; None: schedules count as reached
    square   whether square brackets are syntax too
    """
    groups = [_Group("")]
    special = "()[]" if square else "()"
    at = 0
    while at < len(text):
        char = text[at]
        current = groups[-1]
        if char == "\\" and text[at + 1 : at + 2] in ("(", ")", "[", "]", "\\"):
            at += 1
            current.parts[-1].append(text[at])
        elif char in "([" and char in special:
            groups.append(_Group(char))
            if len(groups) > MOST_BRACKETS:
                raise UnclearPrompt(f"the prompt has more than {MOST_BRACKETS} open brackets")
        elif char in ")]" and char in special and current.bracket == {")": "(", "]": "["}[char]:
            groups.pop()
            groups[-1].parts[-1].append(_closed(current, steps))
        elif char in ":|" and current.bracket == "[":
            current.separators.append(char)
            current.parts.append([])
        else:
            current.parts[-1].append(char)  # including a closing bracket without an opening one
        at += 1
    return "".join(group.text() for group in groups)  # without brackets that are never closed


def _closed(group: _Group, steps: int | None) -> str:
    """The text that replaces a bracket and its content."""
    if group.bracket == "(":
        return WEIGHT.sub("", group.text())
    parts = ["".join(part) for part in group.parts]
    if group.separators and set(group.separators) == {"|"}:
        return ", ".join(part.strip() for part in parts if part.strip())
    if group.separators in ([":"], [":", ":"]) and NUMBER.fullmatch(parts[-1]):
        before, after = (parts[0], parts[1]) if len(parts) == 3 else ("", parts[0])
        return after if _reached(parts[-1].strip(), steps) else before
    return group.text()


def _reached(when: str, steps: int | None) -> bool:
    """Whether sampling passes `when`: a fraction of the steps if written with a point, else a step number."""
    if "." in when:
        return float(when) < 1
    return steps is None or float(when) < steps


def _tidy(text: str) -> str:
    """Remove doubled spaces and commas that removed markup left behind."""
    text = re.sub(r"[ \t]{2,}", " ", text)
    text = re.sub(r",(?:\s*,)+", ",", text)
    text = re.sub(r"[ \t]+(?=,|[.;!?](?:\s|$))", "", text)
    return text.strip(" ,\t\r\n")
