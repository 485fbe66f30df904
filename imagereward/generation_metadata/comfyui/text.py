"""Follows links of a ComfyUI graph backwards, from a sampler through conditionings to texts."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from imagereward.generation_metadata.comfyui import nodes as nodes
from imagereward.generation_metadata.entries import UnclearPrompt

MOST_STEPS = 120  # length of a chain of nodes
MOST_CHARACTERS = 50_000
MOST_PIECES = 64
DYNAMIC = re.compile(r"\{[^{}|]*\|[^{}]*\}|__[\w/*.-]+__")

# An instruction before the prompt, for the language model that encodes Lumina's prompts.
INSTRUCTION = re.compile(r"\AYou are an? .*?<Prompt Start>\s*", re.DOTALL)

Result = TypeVar("Result")


class TextPiece(NamedTuple):
    """A text and the part of the image and of the steps that it applies to; () for the whole."""

    text: str
    part: tuple[str, ...] = ()


def is_link(value: Any) -> bool:
    """Whether an input is a link: `[node id, output index]`."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], (str, int))
        and isinstance(value[1], int)
    )


class Follower:
    """Follows the links of one graph; remembers the result for each output.

    web_ui_syntax   True once an encoder was found that reads a web UI's prompt syntax
    """

    def __init__(self, graph: Mapping[str, Any]):
        good = {
            str(key): node
            for key, node in graph.items()
            if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
        }
        self.inputs: dict[str, dict[str, Any]] = {key: node["inputs"] for key, node in good.items()}
        self.classes = {key: str(node.get("class_type")) for key, node in good.items()}
        self.web_ui_syntax = False
        self._known: dict[tuple[str, str, int], Any] = {}
        self._open: set[tuple[str, str, int]] = set()

    def name(self, key: str) -> str:
        """A node's id and class, for messages."""
        return f"node {key} ({self.classes[key][:60]})"

    def prompt_of_sampler(self, key: str) -> str:
        """The text of a sampler's positive conditioning. Raises UnclearPrompt."""
        inputs = self.inputs[key]
        if is_link(inputs.get("positive")):
            pieces = self._conditioning(inputs["positive"])
        elif is_link(inputs.get("guider")):
            pieces = self._guider(inputs["guider"])
        else:
            raise UnclearPrompt(f"ComfyUI's {self.name(key)} is a sampler of an unknown kind")
        texts = list(dict.fromkeys(piece.text for piece in pieces if piece.text))
        if len(texts) > 1 and len({piece.part for piece in pieces if piece.text}) > 1:
            raise UnclearPrompt(
                f"ComfyUI's {self.name(key)} was given different texts for parts of the picture or the steps"
            )
        return join(texts)

    def _guider(self, link: list) -> list[TextPiece]:
        key = self._node(link)
        class_type = self.classes[key]
        if class_type not in nodes.GUIDERS:
            raise UnclearPrompt(f"ComfyUI's {self.name(key)} is a guider of an unknown kind")
        inputs = [self.inputs[key].get(name) for name in nodes.GUIDERS[class_type]]
        return [piece for value in inputs for piece in self._conditioning(value)]

    def _conditioning(self, value: Any) -> list[TextPiece]:
        return self._follow("conditioning", value, self._read_conditioning)

    def _read_conditioning(self, key: str, output: int) -> list[TextPiece]:
        class_type, inputs = self.classes[key], self.inputs[key]
        if class_type in nodes.ENCODERS:
            self.web_ui_syntax |= class_type in nodes.WEB_UI_ENCODERS
            return [TextPiece(self._encoded(key, nodes.ENCODERS[class_type]))]
        if (class_type, output) in nodes.ENCODED_OUTPUTS:
            if class_type in nodes.FILLED_TEXTS:
                return [TextPiece(self._filled(key))]
            return [TextPiece(self._text(inputs.get(nodes.ENCODED_OUTPUTS[class_type, output])))]
        if class_type in nodes.SAME_CONDITIONING:
            return self._conditioning(self._only(key, nodes.SAME_CONDITIONING[class_type]))
        if class_type in nodes.CONDITIONING_PAIRS and output - nodes.CONDITIONING_PAIRS[class_type] in (0, 1):
            name = ("positive", "negative")[output - nodes.CONDITIONING_PAIRS[class_type]]
            return self._conditioning(inputs.get(name))
        if class_type in nodes.SWITCHES:
            return self._conditioning(self._chosen(key))
        if class_type == "ConditioningZeroOut":
            return [TextPiece("")]
        if class_type == "ConditioningCombine":
            return [p for name in sorted(inputs) for p in self._conditioning(inputs[name])]
        if class_type == "ConditioningConcat":
            more = self._conditioning(inputs.get("conditioning_from"))[:1]  # as the node does
            to = self._conditioning(inputs.get("conditioning_to"))
            return [TextPiece(join([piece.text, *(each.text for each in more)]), piece.part) for piece in to]
        if class_type == "ConditioningAverage":
            return self._average(key)
        if class_type in nodes.PART_OF_PICTURE or class_type == nodes.PART_OF_STEPS:
            part = self._part(key)
            return [TextPiece(p.text, p.part + part) for p in self._conditioning(inputs.get("conditioning"))]
        raise UnclearPrompt(f"ComfyUI's {self.name(key)} makes a conditioning in a way that is not known")

    def _encoded(self, key: str, names: tuple[str, ...]) -> str:
        """The text of an encoder node; its inputs that are not empty must agree."""
        present = [name for name in names if name in self.inputs[key]]
        texts = [self._text(self.inputs[key][name]) for name in present]
        if not texts:
            raise UnclearPrompt(f"ComfyUI's {self.name(key)} has no input {' or '.join(names)}")
        different = {" ".join(text.split()): text for text in texts if text.strip()}
        if len(different) > 1:
            raise UnclearPrompt(f"ComfyUI's {self.name(key)} gave each text encoder another text")
        return INSTRUCTION.sub("", next(iter(different.values()), "").strip(), count=1)

    def _average(self, key: str) -> list[TextPiece]:
        """A weighted mean of two conditionings; UnclearPrompt unless it equals one of them."""
        inputs = self.inputs[key]
        to = self._conditioning(inputs.get("conditioning_to"))
        other = self._conditioning(inputs.get("conditioning_from"))
        strength = inputs.get("conditioning_to_strength")
        if to == other or strength == 1:
            return to
        if strength == 0:
            return other
        raise UnclearPrompt(f"ComfyUI's {self.name(key)} mixes the embeddings of two texts")

    def _part(self, key: str) -> tuple[str, ...]:
        """The part of the image or of the steps that a node restricts its conditioning to; () for all."""
        inputs = self.inputs[key]
        class_type = self.classes[key]
        names: dict[str, Any] = {"start": 0, "end": 1}
        if class_type == "ConditioningSetAreaPercentage":
            names = {"x": 0, "y": 0, "width": 1, "height": 1}
        elif class_type != nodes.PART_OF_STEPS:
            names = dict.fromkeys(sorted(set(inputs) - {"conditioning", "strength"}), None)
        if all(inputs.get(name) == whole for name, whole in names.items()):
            return ()
        return (class_type, *(str(inputs.get(name)) for name in names))

    def _text(self, value: Any) -> str:
        if isinstance(value, dict) and set(value) == {"__value__"}:
            value = value["__value__"]
        if isinstance(value, str):
            if len(value) > MOST_CHARACTERS:
                raise UnclearPrompt(f"ComfyUI's graph has a text of {len(value)} characters")
            return value
        return self._follow("text", value, self._read_text)

    def _read_text(self, key: str, output: int) -> str:
        class_type, inputs = self.classes[key], self.inputs[key]
        if class_type in nodes.SAME_TEXT:
            return self._text(self._only(key, nodes.SAME_TEXT[class_type]))
        if class_type in nodes.FILLED_TEXTS:
            return self._filled(key)
        if class_type in nodes.JOINED_TEXTS:
            names, between = nodes.JOINED_TEXTS[class_type]
            texts = [self._text(inputs[name]) for name in names if name in inputs]
            return bounded(self._text(inputs.get(between, "")), texts)
        if class_type == "JoinStringMulti":
            names = tuple(f"string_{i}" for i in range(1, MOST_PIECES) if f"string_{i}" in inputs)
            return bounded(self._text(inputs.get("delimiter", "")), [self._text(inputs[n]) for n in names])
        if class_type == "Text Concatenate":
            return self._was_concatenate(key)
        if class_type in nodes.REPLACED_TEXTS:
            text, old, new = (self._text(inputs.get(name, "")) for name in nodes.REPLACED_TEXTS[class_type])
            pieces = text.split(old) if old else [text]
            return bounded(new, pieces)
        if class_type in nodes.SWITCHES:
            return self._text(self._chosen(key))
        if class_type == "Text Multiline":  # lines that begin with # are comments
            lines = self._text(inputs.get("text")).split("\n")
            return "\n".join(line for line in lines if not line.strip().startswith("#"))
        if class_type == "StringTrim" and inputs.get("mode") in ("Both", "Left", "Right"):
            strip = {"Both": str.strip, "Left": str.lstrip, "Right": str.rstrip}[inputs["mode"]]
            return strip(self._text(inputs.get("string")))
        raise UnclearPrompt(
            f"the text comes from ComfyUI's {self.name(key)}, whose output is not in the graph"
        )

    def _was_concatenate(self, key: str) -> str:
        """WAS Suite's Text Concatenate: strips texts if set to, skips empty ones; `\\n` is a line break."""
        inputs = self.inputs[key]
        texts = [
            self._text(inputs[name]) for name in ("text_a", "text_b", "text_c", "text_d") if name in inputs
        ]
        if inputs.get("clean_whitespace") in ("true", True):
            texts = [text.strip() for text in texts]
        between = self._text(inputs.get("delimiter", ""))
        return bounded("\n" if between == "\\n" else between, [text for text in texts if text])

    def _filled(self, key: str) -> str:
        """The text of a wildcard node after filling in; UnclearPrompt if wildcards are left in it."""
        text = self._text(self.inputs[key].get(nodes.FILLED_TEXTS[self.classes[key]]))
        template = self.inputs[key].get("wildcard_text")
        if DYNAMIC.search(text) or (not text.strip() and template):
            raise UnclearPrompt(f"ComfyUI's {self.name(key)} does not say how its wildcards were filled in")
        return text

    def _chosen(self, key: str) -> Any:
        choice_name, pattern = nodes.SWITCHES[self.classes[key]]
        choice = self.inputs[key].get(choice_name)
        if not isinstance(choice, int) or isinstance(choice, bool):
            raise UnclearPrompt(f"ComfyUI's {self.name(key)} is a switch whose position is not in the graph")
        return self.inputs[key].get(pattern.format(choice))

    def _only(self, key: str, name: str) -> Any:
        """The input `name`; with an empty name, the node's only input (None if it has several)."""
        if name:
            return self.inputs[key].get(name)
        values = list(self.inputs[key].values())
        return values[0] if len(values) == 1 else None

    def _node(self, link: Any) -> str:
        if not is_link(link):
            raise UnclearPrompt(
                f"ComfyUI's graph has {type(link).__name__} where a link to a node is expected"
            )
        if str(link[0]) not in self.inputs:
            raise UnclearPrompt(f"ComfyUI's graph has a link to node {str(link[0])[:40]}, which is not in it")
        return str(link[0])

    def _follow(self, what: str, value: Any, read: Callable[[str, int], Result]) -> Result:
        """Call `read` on the node and output of a link, once for each.

        UnclearPrompt for circles and for chains of more than `MOST_STEPS` nodes.
        """
        key = self._node(value)
        place = (what, key, value[1])
        if place in self._known:
            return self._known[place]
        if place in self._open:
            raise UnclearPrompt(f"ComfyUI's graph has a circle at {self.name(key)}")
        if len(self._open) >= MOST_STEPS:
            raise UnclearPrompt(f"ComfyUI's graph has more than {MOST_STEPS} nodes before its sampler")
        self._open.add(place)
        try:
            found = read(key, value[1])
        finally:
            self._open.discard(place)
        if isinstance(found, list) and len(found) > MOST_PIECES:
            raise UnclearPrompt(f"ComfyUI's graph combines more than {MOST_PIECES} conditionings")
        self._known[place] = found
        return found


def join(texts: list[str]) -> str:
    """Join texts that apply together: with ", ", or with a space after punctuation."""
    joined = ""
    for text in (text.strip() for text in texts):
        if joined and text:
            joined += (" " if joined[-1] in ".!?;:," else ", ") + text
        else:
            joined += text
    if len(joined) > MOST_CHARACTERS:
        raise UnclearPrompt(f"ComfyUI's graph joins texts to {len(joined)} characters")
    return joined


def bounded(between: str, texts: list[str]) -> str:
    """`between.join(texts)`; UnclearPrompt for more than `MOST_CHARACTERS` characters."""
    length = sum(map(len, texts)) + len(between) * max(0, len(texts) - 1)
    if length > MOST_CHARACTERS:
        raise UnclearPrompt(f"ComfyUI's graph joins texts to {length} characters")
    return between.join(texts)
