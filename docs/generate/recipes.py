"""The recipes reference: every key of every objective, and every recipe with the values that it sets."""

import tomllib
import types
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from markup import cell, code, table
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from imagereward.tuning import RUNNERS
from imagereward.tuning.from_scratch.train import AutoencoderConfig, CLIPTextConfig
from imagereward.tuning.inheritance import INHERITS
from imagereward.tuning.judges.config import JudgeTrainingConfig
from imagereward.tuning.objectives import OBJECTIVES, config_class
from imagereward.tuning.personal.config import PersonalConfig
from imagereward.tuning.recipe import RECIPES, read_recipe, recipe_file, recipe_names
from imagereward.tuning.reward_model.config import RewardModelConfig

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
REQUIRED = "required"
# Objectives that are no generator's, and so have no place in OBJECTIVES.
OTHERS: dict[str, type[BaseModel]] = {
    "preference": RewardModelConfig,
    "personal": PersonalConfig,
    "judge": JudgeTrainingConfig,
    "autoencoder": AutoencoderConfig,
    "clip": CLIPTextConfig,
}


class Key(NamedTuple):
    """One key: `name` with dots, `values` that it takes, `default` as in TOML, and `meaning`."""

    name: str
    values: str
    default: str
    meaning: str


def config_classes() -> dict[str, type[BaseModel]]:
    """The config class of every objective that a recipe may name."""
    return {name: config_class(name) if name in OBJECTIVES else OTHERS[name] for name in RUNNERS}


def keys_of(kind: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Every key of a config, tables' keys after the table, in the config's order."""
    for name, field in kind.model_fields.items():
        inner = _table_in(field.annotation)
        optional = type(None) in get_args(field.annotation)
        if inner is None:
            yield Key(prefix + name, _values(field), _default(field), field.description or "")
            continue
        default = REQUIRED if field.is_required() else "left out" if optional else ""
        yield Key(prefix + name, "table", default, field.description or _first_sentence(inner))
        yield from keys_of(inner, f"{prefix}{name}.")


def page() -> str:
    """Markdown: the recipes with what they are for, then the keys of every objective."""
    recipes = [
        (f"[`{name}`](recipes/{_family(name)}.md#{_anchor(name)})", cell(_header(name)[0]))
        for name in recipe_names()
    ]
    parts = ["## Recipes in the package", table(("recipe", "use"), recipes)]
    for objective, kind in config_classes().items():
        rows = (
            (code(key.name), cell(key.values), code(key.default), cell(key.meaning)) for key in keys_of(kind)
        )
        parts += [
            f"## Keys of `{objective}` {{ #{objective} }}",
            (kind.__doc__ or "").split("\n\n")[0],
            table(("key", "allowed", "default", "meaning"), rows),
        ]
    return "\n\n".join(parts)


def family_pages() -> dict[str, str]:
    """Markdown of the page of every folder of recipes, by the folder's name."""
    pages: dict[str, list[str]] = {}
    for name in recipe_names():
        pages.setdefault(_family(name), []).append(_recipe(name))
    return {
        family: f"# Recipes: {family}\n\nKeys that a recipe leaves out have the default of its objective.\n\n"
        + "\n\n".join(sections)
        for family, sections in pages.items()
    }


def _recipe(name: str) -> str:
    values = read_recipe(name)
    objective = values["objective"]
    known = {key.name: key for key in keys_of(config_classes()[objective])}
    rows = []
    for key, value in flat(values, known):
        about = known[key]
        meaning = cell(about.meaning)
        rows.append((code(key), code(toml(value)), cell(about.values), code(about.default), meaning))
    about, command = _header(name)
    command = command or f"imagereward tune {name}"
    parts = [
        f"## {name} {{ #{_anchor(name)} }}",
        cell(about),
        f"Objective: [`{objective}`](../recipes.md#{objective}).{_parent(name)}",
        f"```bash\n{command}\n```",
        table(("key", "value", "allowed", "default", "meaning"), rows),
    ]
    return "\n\n".join(part for part in parts if part)


def _parent(name: str) -> str:
    """A sentence with a link to the recipe that a recipe inherits; "" if it inherits none."""
    parent = tomllib.loads(recipe_file(name).read_text(encoding="utf-8")).get(INHERITS)
    if parent is None:
        return ""
    return f" Inherits [`{parent}`]({_family(parent)}.md#{_anchor(parent)}); the table has the merged values."


def _header(name: str) -> tuple[str, str]:
    """The sentences and the command lines of the comment at a recipe's head."""
    about, commands = [], []
    for line in (RECIPES / f"{name}.toml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#")
        (commands if text.startswith("   ") else about).append(text.strip())
    return " ".join(about), "\n".join(commands)


def flat(values: dict[str, Any], known: dict[str, Key], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key with dots, value); a table that the config has no keys for stays a value."""
    for name, value in values.items():
        has_keys = any(each.startswith(f"{prefix}{name}.") for each in known)
        if isinstance(value, dict) and has_keys:
            yield from flat(value, known, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _family(name: str) -> str:
    return name.split("/")[0]


def _anchor(name: str) -> str:
    return name.replace("/", "-")


def _first_sentence(kind: type) -> str:
    return (kind.__doc__ or "").split("\n\n")[0]


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union, or the one type."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return list(get_args(annotation)) if is_union else [annotation]


def _table_in(annotation: Any) -> type[BaseModel] | None:
    members = _members(annotation)
    return next((each for each in members if isinstance(each, type) and issubclass(each, BaseModel)), None)


def _values(field: FieldInfo) -> str:
    """Type, range, choices and unit of a key, in words."""
    kinds = " or ".join(_kind(each) for each in _members(field.annotation))
    limits = [
        f"{word} {getattr(constraint, bound):g}"
        for constraint in field.metadata
        for bound, word in BOUNDS.items()
        if getattr(constraint, bound, None) is not None
    ]
    extra = field.json_schema_extra
    unit = extra.get("unit", "") if isinstance(extra, dict) else ""
    return ", ".join(part for part in (kinds, *limits, str(unit)) if part)


def _kind(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    if get_origin(annotation) is Literal:
        return ", ".join(code(toml(choice)) for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        inner = [each for each in get_args(annotation) if each is not ...]
        return f"list of {_kind(inner[0])}"
    if get_origin(annotation) is dict:
        key, value = get_args(annotation)
        return "table" + ("" if value is Any else f" of {_kind(key)} = {_kind(value)}")
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> str:
    return REQUIRED if field.is_required() else toml(field.get_default(call_default_factory=True))


def toml(value: Any) -> str:
    """A value as a recipe writes it; None, which TOML lacks, as null."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(key)} = {toml(each)}" for key, each in value.items()) + "}"
    return str(value)


def _toml_key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else toml(key)
