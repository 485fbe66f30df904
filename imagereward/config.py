"""`ScorerConfig`: all settings that a score depends on, apart from the weights; and checks of values."""

import json
import math
import operator
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from imagereward.errors import InputError, did_you_mean
from imagereward.images.preprocess import Preprocess

TOKENIZATIONS = ("open_clip", "transformers")
JSON_BYTES, JSON_LEVELS = 2**20, 32
# Numbers in an architecture that cost time or memory while its network is laid out.
LARGEST = {"layers": 1000, "depth": 1000, "context_length": 4096}


@dataclass(frozen=True)
class AdapterConfig:
    """A small change to a scorer's weights, saved beside them. No kind of adapter is known yet.

    kind   the method, such as a low-rank update
    name   the adapter's name: what `load(..., adapter=)` asks for
    """

    kind: str
    name: str = "default"

    def __post_init__(self) -> None:
        raise InputError(f"adapter of kind {self.kind!r}: no kind of adapter is known yet")


@dataclass(frozen=True)
class ScorerConfig:
    """Everything but the weights that a score depends on; saved as `config.json` beside them.

    kind          which of `imagereward.models.KINDS` computes it
    architecture  shapes of the network (BLIP kinds) or an open_clip model name or config (CLIP kinds)
    max_length    tokens of the prompt that are read; longer ones are truncated
    mean, std     score = (raw - mean) / std
    scaled        multiply a cosine by the learned logit scale
    tokenization  how CLIP kinds read a prompt: "open_clip" repairs broken Unicode and unescapes HTML first,
                  as CLIP's and HPS's code does; "transformers" does neither, as PickScore's processor
    adapters      adapters that the weights are used with, in order; none is known yet, so it is empty
    """

    kind: str
    architecture: Any = field(default_factory=dict)
    preprocess: Preprocess = field(default_factory=Preprocess)
    max_length: int = 35
    mean: float = 0.0
    std: float = 1.0
    scaled: bool = False
    tokenization: str = "open_clip"
    adapters: tuple[AdapterConfig, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str):
            raise InputError(f"kind={self.kind!r}: expected a name")
        whole_number("max_length", self.max_length, 2)
        if not all(
            isinstance(value, (int, float)) and math.isfinite(value) for value in (self.mean, self.std)
        ):
            raise InputError(f"mean={self.mean!r}, std={self.std!r}: expected finite numbers")
        if self.std <= 0 or not isinstance(self.scaled, bool):
            raise InputError(f"std={self.std!r}, scaled={self.scaled!r}: expected above 0, and a boolean")
        if self.tokenization not in TOKENIZATIONS:
            raise InputError(f"tokenization={self.tokenization!r}: expected {' or '.join(TOKENIZATIONS)}")
        check_sizes(self.architecture)
        if not isinstance(self.adapters, tuple) or not all(
            isinstance(each, AdapterConfig) for each in self.adapters
        ):
            raise InputError(f"adapters={self.adapters!r}: expected a list of adapters' configs")

    def to_dict(self) -> dict:
        """Plain values, as `config.json` holds them; without `adapters` where there are none."""
        values = asdict(self)
        if not self.adapters:  # configs of scorers without adapters stay as released
            del values["adapters"]
        return values

    @classmethod
    def from_dict(cls, values: dict) -> "ScorerConfig":
        """The config that `to_dict` wrote; unknown keys are an InputError naming the nearest."""
        values = dict(values)
        preprocess = dict(values.pop("preprocess", {}))
        for key in {"mean", "std"} & preprocess.keys():
            preprocess[key] = tuple(preprocess[key])
        adapters = values.pop("adapters", [])
        if not isinstance(adapters, list) or not all(isinstance(each, dict) for each in adapters):
            raise InputError(f"adapters={adapters!r}: expected a list of adapters' configs")
        values["adapters"] = tuple(strict(AdapterConfig, each) for each in adapters)
        return strict(cls, {**values, "preprocess": strict(Preprocess, preprocess)})


def read_json(path: Path) -> Any:
    """The values in a JSON file of at most 1 MiB and 32 levels; ValueError for others, OSError."""
    with open(path, "rb") as stream:
        data = stream.read(JSON_BYTES + 1)
    if len(data) > JSON_BYTES:
        raise InputError(f"{path} has more than {JSON_BYTES} bytes; a scorer's config has about 1000")
    text = data.decode("utf-8")
    level = 0
    for bracket in re.findall(r"[\[{\]}]", re.sub(r'"(?:[^"\\]|\\.)*"', "", text)):
        level += 1 if bracket in "[{" else -1
        if level > JSON_LEVELS:
            raise InputError(f"{path} is nested more than {JSON_LEVELS} levels deep")
    return json.loads(text)


def check_sizes(architecture: Any) -> None:
    """InputError for implausibly large sizes in a network's config.

    A hostile config could otherwise take time and memory before any weight is read.
    """
    if not isinstance(architecture, dict):
        return
    for name, value in architecture.items():
        check_sizes(value)
        numbers = [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, int)]
        if numbers and max(numbers) > (most := LARGEST.get(name, 2**24)):
            raise InputError(f"architecture: {name}={value!r}; expected at most {most}")


def whole_number(name: str, value, least: int, most: int | None = None) -> int:
    """`value` as an int; InputError naming it unless it is a whole number in [least, most]."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least or (most is not None and number > most):
        limit = f"of at least {least}" if most is None else f"in {least}..{most}"
        raise InputError(f"{name}={value!r}: expected a whole number {limit}")
    return number


def strict(cls, values: dict):
    """`cls(**values)`; an unknown key is an InputError that names the nearest valid one."""
    valid = [item.name for item in fields(cls)]
    for key in values:
        if key not in valid:
            hint = did_you_mean(key, valid) or f"valid: {', '.join(valid)}"
            raise InputError(f"{cls.__name__} has no {key!r}; {hint}")
    return cls(**values)
