"""Recipes: TOML with strict keys and types, shipped by name or given by path, changed by key=value."""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from imagereward.errors import InputError

RECIPES = Path(__file__).parent / "recipes"


class Config(BaseModel):
    """Base of all configs: frozen, without room for unknown keys, and a number is no string."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, strict=True, allow_inf_nan=False
    )


C = TypeVar("C", bound=Config)


def recipe_names() -> list[str]:
    """Names of the recipes in the package, like `tiny/preference`."""
    return sorted(str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.toml"))


def read_recipe(name: str | os.PathLike, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's values, by its name or a file's path, with `key=value` and `table.key=value` laid over.

    Values are written as in TOML; what TOML cannot read is taken as a string, and null, which TOML lacks, as
    no value: `kl=null`. Raises InputError.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        path = RECIPES / f"{name}.toml"
        if not path.is_file():
            near = difflib.get_close_matches(str(name), recipe_names(), 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"{str(name)!r} is no recipe and no file; {hint}known: {', '.join(recipe_names())}"
            )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as TOML: {error}") from error
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise InputError(f"{override!r}: expected key=value")
        _set(values, key.strip().split("."), _value(text), override)
    return values


def laid_over(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values with changes in their place; a table's keys are changed one by one."""
    changed = dict(values)
    for key, value in changes.items():
        inner = changed.get(key)
        both_tables = isinstance(inner, dict) and isinstance(value, Mapping)
        changed[key] = laid_over(inner or {}, value) if both_tables else value
    return changed


def build(kind: type[C], values: dict[str, Any], source: str = "config") -> C:
    """`kind(**values)`; InputError naming every key that is unknown (and the nearest valid one) or wrong."""
    try:
        return kind(**values)
    except ValidationError as error:
        faults = [_fault(kind, fault) for fault in error.errors()]
        raise InputError(f"{source}:" + "".join(f"\n  {fault}" for fault in faults)) from error


def _fault(kind: type[BaseModel], fault: Any) -> str:
    path = [str(part) for part in fault["loc"]]
    name, message = ".".join(path), fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        valid = _keys_at(kind, path[:-1])
        near = difflib.get_close_matches(path[-1], valid, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(valid)}"
        return f"{name} is no key; {hint}"
    if fault["type"] == "missing":
        return f"{name} is missing"
    return f"{name}={fault['input']!r}: {message}" if path else message


def _keys_at(kind: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(part)
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        inner = [each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)]
        if not inner:
            return []
        kind = inner[0]
    return list(kind.model_fields)


def _set(values: dict, path: list[str], value: Any, override: str) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise InputError(f"{override!r}: {part} is a value, not a table")
    values[path[-1]] = value


def _value(text: str) -> Any:
    if text.strip() == "null":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
