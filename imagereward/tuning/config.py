"""Recipes: reads TOML files with strict keys and types, by name or path, and applies key=value changes.

The keys themselves are in `settings.py` (trainer), `objectives/config.py` (generators) and beside each
objective.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from imagereward.errors import InputError, did_you_mean
from imagereward.tuning.inheritance import Inherited, inherited_values

RECIPES = Path(__file__).parent / "recipes"


class Config(BaseModel):
    """Base of all configs: frozen and strict; unknown keys, other types and non-finite numbers are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, strict=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        """Expands short forms: x to [x] for a list, true to a table of defaults, false to no table."""
        if not isinstance(values, Mapping):
            return values
        fields = cls.model_fields
        return {
            key: _expanded(fields[key].annotation, value) if key in fields else value
            for key, value in values.items()
        }


C = TypeVar("C", bound=Config)


def recipe_names() -> list[str]:
    """Sorted names of the recipes in the package, such as "tiny/preference"."""
    return sorted(map(recipe_name, RECIPES.rglob("*.toml")))


def read_recipe(name: str | os.PathLike, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a recipe and of those that it inherits, as nested dicts, with changes applied.

    name       a recipe's name in the package, or the path of a TOML file
    overrides  changes as "key=value" or "table.key=value", with values in TOML. Text that is no TOML is
               taken as a string. TOML has no null: write "kl=null"

    Raises InputError as `recipe_values` does, and for a change in another form.
    """
    values = recipe_values(name).values
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise InputError(f"{override!r}: expected key=value")
        _set(values, key.strip().split("."), _value(text), override)
    return values


def recipe_values(name: str | os.PathLike) -> Inherited:
    """The values of a recipe and of those that it inherits, with the file that each value comes from.

    Raises InputError for an unknown recipe, and as `inherited_values` does.
    """
    return inherited_values(recipe_file(name), RECIPES)


def recipe_name(file: Path) -> str:
    """The name of a recipe by its file: that of a recipe in the package, or else the path."""
    return str(file.relative_to(RECIPES).with_suffix("") if file.is_relative_to(RECIPES) else file)


def recipe_file(name: str | os.PathLike) -> Path:
    """The TOML file of a recipe, by its name in the package or a path. Raises InputError if there is none."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    path = RECIPES / f"{name}.toml"
    if not path.is_file():
        hint = " ".join(filter(None, [did_you_mean(str(name), recipe_names()), "known:"]))
        raise InputError(f"{str(name)!r} is no recipe and no file; {hint} {', '.join(recipe_names())}")
    return path


def recipe_header(name: str | os.PathLike) -> str:
    """The comment at the top of a recipe's file without "#"; lines with examples are indented."""
    lines = recipe_file(name).read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").removeprefix(" ").rstrip())
    return "\n".join(comment)


def recipe_summary(name: str | os.PathLike) -> str:
    """The first sentence of a recipe's header, and the sentence that begins with "Takes", if there is one.

    Text in parentheses, such as references, is left out.
    """
    prose = " ".join(line for line in recipe_header(name).splitlines() if not line.startswith(" "))
    first, *others = re.split(r"(?<=\.)\s+(?=[A-Z])", re.sub(r"\s*\([^()]*\)", "", prose))
    return " ".join([first, *(other for other in others if other.startswith("Takes "))])


def laid_over(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `values` with `changes` applied; nested tables are merged key by key."""
    changed = dict(values)
    for key, value in changes.items():
        inner = changed.get(key)
        if isinstance(inner, dict) and isinstance(value, Mapping):
            changed[key] = laid_over(inner, value)
        elif not (isinstance(inner, dict) and value is True):  # true keeps the recipe's table
            changed[key] = value
    return changed


def build(config_class: type[C], values: dict[str, Any], source: str = "config") -> C:
    """The config `config_class(**values)`.

    source  name of the values in error messages

    Raises InputError naming every unknown key, with the nearest valid key, and every wrong value.
    """
    try:
        return config_class(**values)
    except ValidationError as error:
        faults = [_fault(config_class, fault) for fault in error.errors()]
        raise InputError(f"{source}:" + "".join(f"\n  {fault}" for fault in faults)) from error


def _fault(config_class: type[BaseModel], fault: Any) -> str:
    path = [str(part) for part in fault["loc"]]
    name, message = ".".join(path), fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        valid = _keys_at(config_class, path[:-1])
        hint = did_you_mean(path[-1], valid) or f"valid: {', '.join(valid)}"
        return f"{name} is no key; {hint}"
    field = _field_at(config_class, path)
    meaning = f" ({field.description})" if field is not None and field.description else ""
    if fault["type"] == "missing":
        return f"{name} is missing: say {name}=…{meaning}"
    if not path:
        return message
    if field is not None and (table := table_of(field.annotation)) and fault["type"] == "model_type":
        first, *others = table.model_fields
        also = f" (or {', '.join(f'{name}.{other}=…' for other in others[:2])})" if others else ""
        return (
            f"{name}={fault['input']!r}: expected a table; say {name}.{first}=…{also}, or, in quotes because "
            f"of the shell, '{name}={{{first}=…}}'"
        )
    return f"{name}={fault['input']!r}: {message}"


def table_of(annotation: Any) -> type[BaseModel] | None:
    """The config class in a field's type `Config` or `Config | None`; None for other types."""
    kinds = [annotation, *get_args(annotation)]
    found = [each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)]
    return found[0] if found else None


def _field_at(config_class: type[BaseModel], path: list[str]) -> Any:
    for part in path[:-1]:
        field = config_class.model_fields.get(part)
        inner = table_of(field.annotation) if field else None
        if inner is None:
            return None
        config_class = inner
    return config_class.model_fields.get(path[-1]) if path else None


def _keys_at(config_class: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = config_class.model_fields.get(part)
        inner = table_of(field.annotation) if field else None
        if inner is None:
            return []
        config_class = inner
    return list(config_class.model_fields)


def _expanded(annotation: Any, value: Any) -> Any:
    """The full form of a value that was given in a short form; other values as they are."""
    if get_origin(annotation) is tuple and not isinstance(value, list | tuple):
        if isinstance(value, str):  # [a, b]: a shell removes the quotes from ["a", "b"]
            parts = value.strip().removeprefix("[").removesuffix("]").split(",")
            texts = str in get_args(annotation)
            return [part.strip() if texts else _value(part.strip()) for part in parts if part.strip()]
        return [value]
    if isinstance(value, bool) and table_of(annotation) is not None:
        if value:
            return {}
        return None if type(None) in get_args(annotation) else value
    return value


def _set(values: dict, path: list[str], value: Any, override: str) -> None:
    for part in path[:-1]:
        if values.get(part) in (None, True):
            values[part] = {}
        values = values[part]
        if not isinstance(values, dict):
            raise InputError(f"{override!r}: {part} is a value, not a table")
    if not (value is True and isinstance(values.get(path[-1]), dict)):  # true keeps the recipe's table
        values[path[-1]] = value


def _value(text: str) -> Any:
    if text.strip() == "null":
        return None
    if text.strip() in ("True", "False"):  # as Python writes them
        return text.strip() == "True"
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
