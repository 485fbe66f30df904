"""explain: lists the keys of a recipe with their values, the values' origins, and their meanings."""

import os
import textwrap
import types
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from imagereward.errors import InputError
from imagereward.tuning.config import Config, table_of
from imagereward.tuning.recipe import read_recipe, recipe_file, recipe_name, recipe_values

MISSING = "(must be given)"
ORIGINS = ("default", "recipe", "command line")
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class Explained(NamedTuple):
    """A key of a recipe.

    name     the key, with its table before a dot, as in "gradient.mode"
    value    the value in TOML, or MISSING for a required key without a value
    origin   one of ORIGINS, or "recipe NAME" for a value of a recipe that this one inherits; "" for a missing
             value
    meaning  the key's description with its range
    """

    name: str
    value: str
    origin: str
    meaning: str


def explain(recipe: str | os.PathLike, overrides: Sequence[str] = ()) -> list[Explained]:
    """Every key that a recipe may have, in the order of its config class.

    recipe     a recipe's name, or the path of a TOML file
    overrides  changes as "key=value"

    Raises InputError for an unknown recipe or objective.
    """
    values, changed = read_recipe(recipe), read_recipe(recipe, list(overrides))
    own, files = recipe_file(recipe).resolve(), recipe_values(recipe).origins
    inherited = {key: file for key, file in files.items() if file.resolve() != own}
    keys = _keys(config_of(changed.get("objective", ""), str(recipe)), changed, values, "")
    return [
        key._replace(origin=f"recipe {recipe_name(inherited[key.name])}")
        if key.origin == "recipe" and key.name in inherited
        else key
        for key in keys
    ]


def config_of(objective: str, source: str) -> type[Config]:
    """The config class of an objective, such as "preference", "autoencoder" or "grpo".

    source  name of the recipe in error messages

    Raises InputError for an unknown objective.
    """
    if objective == "judge":
        from imagereward.tuning.judges.config import JudgeTrainingConfig

        return JudgeTrainingConfig
    if objective == "preference":
        from imagereward.tuning.reward_model.config import RewardModelConfig

        return RewardModelConfig
    if objective == "personal":
        from imagereward.tuning.personal.config import PersonalConfig

        return PersonalConfig
    if objective in ("autoencoder", "clip"):
        from imagereward.tuning.from_scratch.train import AutoencoderConfig, CLIPTextConfig

        return AutoencoderConfig if objective == "autoencoder" else CLIPTextConfig
    if not objective:
        raise InputError(f"{source}: objective is missing")
    from imagereward.tuning.objectives import config_class

    return config_class(objective)


def as_text(keys: Sequence[Explained], width: int = 100) -> str:
    """Text for a terminal: a line with key, value and origin, and below it the indented meaning.

    width  characters in a line of the meaning
    """
    lines = []
    for key in keys:
        head = f"{key.name} = {key.value}"
        lines.append(f"{head}{' ' * max(2, 60 - len(head))}{key.origin}".rstrip())
        lines += textwrap.wrap(key.meaning, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _keys(config_class: type[BaseModel], values: Any, recipe: Any, prefix: str) -> Iterator[Explained]:
    """The keys of the config class `config_class`.

    values  the table's values with changes, {} for an absent table
    recipe  the table's values in the recipe, without changes, {} for an absent table
    prefix  the table's name and a dot, or ""
    """
    for name, field in config_class.model_fields.items():
        given, before = _get(values, name), _get(recipe, name)
        table = table_of(field.annotation)
        if table is None:
            yield Explained(prefix + name, *_value_of(field, given, before), _meaning(field))
        elif given in (None, False, MISSING) and type(None) in get_args(field.annotation):
            keys = f"table, left out; its keys: {', '.join(table.model_fields)}"
            origin = _origin(given, before)
            yield Explained(prefix + name, "null", origin, f"{_meaning(field)} ({keys})")
        else:
            yield from _keys(
                table,
                given if isinstance(given, dict) else {},
                before if isinstance(before, dict) else {},
                f"{prefix}{name}.",
            )


def _get(values: Any, name: str) -> Any:
    return values.get(name, MISSING) if isinstance(values, dict) else MISSING


def _value_of(field: FieldInfo, given: Any, before: Any) -> tuple[str, str]:
    if given is not MISSING:
        return _toml(given), _origin(given, before)
    if field.is_required():
        return MISSING, ""
    return _toml(field.get_default(call_default_factory=True)), "default"


def _origin(given: Any, before: Any) -> str:
    if given is MISSING:
        return "default"
    return "recipe" if given == before and type(given) is type(before) else "command line"


def _toml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_bare(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    return str(value)


def _bare(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else _toml(key)


def _meaning(field: FieldInfo) -> str:
    choices, limits = _choices(field.annotation), []
    for constraint in field.metadata:
        limits += [
            f"{word} {getattr(constraint, each):g}"
            for each, word in BOUNDS.items()
            if hasattr(constraint, each)
        ]
    allowed = [*([f"one of {', '.join(map(_toml, choices))}"] if len(choices) > 1 else []), *limits]
    return "; ".join([part for part in (field.description or "", ", ".join(allowed)) if part])


def _choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in (types.UnionType,):
        return [choice for each in get_args(annotation) for choice in _choices(each)]
    return []
