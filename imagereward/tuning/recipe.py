"""Recipes: finds TOML files by name or path, reads them, and applies key=value changes."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagereward.errors import InputError, did_you_mean
from imagereward.tuning.config import toml_value
from imagereward.tuning.inheritance import Inherited, inherited_values

RECIPES = Path(__file__).parent / "recipes"


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
        _set(values, key.strip().split("."), toml_value(text), override)
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


def _set(values: dict, path: list[str], value: Any, override: str) -> None:
    for part in path[:-1]:
        if values.get(part) in (None, True):
            values[part] = {}
        values = values[part]
        if not isinstance(values, dict):
            raise InputError(f"{override!r}: {part} is a value, not a table")
    if not (value is True and isinstance(values.get(path[-1]), dict)):  # true keeps the recipe's table
        values[path[-1]] = value
