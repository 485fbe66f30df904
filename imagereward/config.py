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
ADAPTER_KINDS = ("loreft", "noreft", "consreft", "lobireft", "direft", "nodireft", "lora")
ADAPTER_ACTIVATIONS = ("none", "relu", "gelu", "silu", "tanh")
# Numbers in an architecture that cost time or memory while its network is laid out.
LARGEST = {"layers": 1000, "depth": 1000, "context_length": 4096}


@dataclass(frozen=True)
class AdapterConfig:
    """A small change to a scorer, saved beside its weights.

    kind        one of `ADAPTER_KINDS`: a ReFT intervention, or "lora"
    name        letters, digits, "-" and "_": what switches it on and off
    modules     paths of the modules whose output changes (LoRA: of linear layers); * stands for any part of a
                path, and the name of a stream of tokens, "text" or "image", for its layers. Default: the
                scorer's own choice
    rank        number of directions, at least 1, at most the module's width
    positions   "f{n}+l{m}": the first n and last m real tokens, at most half each; or "all". For ReFT
    shared      whether first and last tokens share one intervention instead of having one each. For ReFT
    activation  "none", "relu", "gelu", "silu" or "tanh". For ReFT
    bias        whether W h + b has its b. For ReFT
    dropout     in training, share in [0, 1) of the delta (LoRA: of its input) that is set to 0
    alpha       LoRA's output is scaled by alpha / rank; 0: by 1
    scale       the delta is multiplied by it; 1 is as trained
    width       width of the modules' output, where it cannot be seen from them; 0: it is seen
    subspaces   {name: indices of directions, from 0}, which may be used alone. For ReFT
    base        name of the scorer that it was made for; informs
    weights     {number format: SHA-256 of the scorer's weights in it}; `add_adapter` raises CheckpointError
                for a scorer with other weights
    beneath     {name: SHA-256} of the adapters that were on the scorer when this one was made; `add_adapter`
                raises CheckpointError for a scorer that lacks one of them
    """

    kind: str
    name: str = "default"
    modules: tuple[str, ...] = ()
    rank: int = 4
    positions: str = "f1+l1"
    shared: bool = False
    activation: str = "none"
    bias: bool = True
    dropout: float = 0.0
    alpha: int = 0
    scale: float = 1.0
    width: int = 0
    subspaces: dict[str, tuple[int, ...]] = field(default_factory=dict)
    base: str = ""
    weights: dict[str, str] = field(default_factory=dict)
    beneath: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, ADAPTER_KINDS)
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w-]{1,100}", self.name):
            raise InputError(f"name={self.name!r}: expected letters, digits, '-' and '_', at most 100")
        modules = (self.modules,) if isinstance(self.modules, str) else self.modules
        if not isinstance(modules, (list, tuple)) or not all(isinstance(path, str) for path in modules):
            raise InputError(f"modules={self.modules!r}: expected a list of paths")
        object.__setattr__(self, "modules", tuple(modules))
        whole_number("rank", self.rank, 1)
        whole_number("alpha", self.alpha, 0)
        whole_number("width", self.width, 0)
        _one_of("activation", self.activation, ADAPTER_ACTIVATIONS)
        for name in ("shared", "bias"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}={getattr(self, name)!r}: expected true or false")
        for name, most in (("dropout", 1.0), ("scale", math.inf)):
            value = getattr(self, name)
            if (
                not isinstance(value, (int, float))
                or not abs(value) < most
                or (name == "dropout" and value < 0)
            ):
                raise InputError(
                    f"{name}={value!r}: expected a number in [0, 1) for dropout, finite for scale"
                )
        for name in ("subspaces", "weights", "beneath"):
            values = getattr(self, name)
            if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
                raise InputError(f"{name}={values!r}: expected a table")
        if self.subspaces and self.kind == "lora":
            raise InputError(f"subspaces={self.subspaces!r}: kind='lora' has none; expected a ReFT kind")
        if any(not isinstance(rows, (list, tuple)) or not rows for rows in self.subspaces.values()):
            raise InputError(f"subspaces={self.subspaces!r}: expected a list of directions for each name")
        rows = {
            key: tuple(whole_number(f"subspaces.{key}", row, 0, self.rank - 1) for row in values)
            for key, values in self.subspaces.items()
        }
        object.__setattr__(self, "subspaces", rows)


def _one_of(name: str, value: Any, valid: tuple[str, ...]) -> None:
    if value not in valid:
        hint = did_you_mean(str(value).lower(), valid)
        raise InputError(f"{name}={value!r}: {hint + ' ' if hint else ''}expected one of {', '.join(valid)}")


@dataclass(frozen=True)
class ScorerConfig:
    """Everything but the weights that a score depends on; saved as `config.json` beside them.

    kind          which of `imagereward.models.KINDS` computes it; "VLM" for judges, "Ensemble" for ensembles
    architecture  shapes of the network (BLIP kinds) or an open_clip model name or config (CLIP kinds)
    max_length    tokens of the prompt that are read; longer ones are truncated
    mean, std     score = (raw - mean) / std
    scaled        multiply a cosine by the learned logit scale
    tokenization  how CLIP kinds read a prompt: "open_clip" repairs broken Unicode and unescapes HTML first,
                  as CLIP's and HPS's code does; "transformers" does neither, as PickScore's processor
    adapters      adapters that the weights are used with, in the order in which they were added
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
