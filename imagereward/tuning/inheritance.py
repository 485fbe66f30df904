"""Inheritance of recipes: a recipe's file has the values of the recipe that it names, with its own on top."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from imagereward.errors import InputError, did_you_mean

INHERITS = "inherits"
REMOVED = "null"


class Inherited(NamedTuple):
    """The values of a recipe and of the recipes that it inherits.

    values   nested dicts, without the key `inherits`
    origins  the file of each value; keys of tables with dots, as in "lora.rank". That of a whole
             table is the last file that changed any of its keys
    """

    values: dict[str, Any]
    origins: dict[str, Path]


def inherited_values(path: Path, package: Path) -> Inherited:
    """The values of the recipe in a TOML file, merged with those of the recipes that it inherits.

    path     the recipe's file
    package  folder of the package's recipes, named without ".toml"

    `inherits = "sd3/nft"` names another recipe: a file, from the folder of the file that names it, or a
    recipe of the package. Its tables are merged key by key with the file's own, whose values come first.
    `false` in the place of an inherited table removes the table, "null" any inherited key; the objective's
    default then holds. `true` in the place of a table keeps it.

    Raises InputError for a file that is no TOML, for a name that is no recipe and for recipes that inherit
    each other in a circle, naming the files from the first to the one at fault.
    """
    chain = _chain(path, package)
    values: dict[str, Any] = {}
    origins: dict[str, Path] = {}
    for file, own in reversed(chain):
        _lay_over(values, own, origins, file, "")
    return Inherited(values, origins)


def _chain(path: Path, package: Path) -> list[tuple[Path, dict[str, Any]]]:
    """[(file, its own values)], from the recipe to the one that inherits nothing."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    while True:
        if path.resolve() in [file.resolve() for file, _ in chain]:
            raise InputError(f"{_arrows([*chain, (path, {})])}: recipes inherit each other in a circle")
        try:
            own = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as TOML: {error}") from error
        chain.append((path, own))
        if INHERITS not in own:
            return chain
        name = own.pop(INHERITS)
        if not isinstance(name, str) or not name:
            raise InputError(f'{path}: inherits={name!r}; expected the name of a recipe, as in "sd3/nft"')
        candidates = [path.parent / Path(name).expanduser(), package / f"{name}.toml"]
        found = next((each for each in candidates if each.is_file()), None)
        if found is None:
            hint = did_you_mean(name, [_name(each, package) for each in package.rglob("*.toml")])
            expected = f"a recipe of the package, or a file seen from {path.parent}"
            raise InputError(
                f"{_arrows(chain)} inherits {name!r}, which is no recipe and no file; "
                + " ".join(filter(None, [hint, f"expected {expected}"]))
            )
        path = found


def _lay_over(
    values: dict[str, Any], own: Mapping[str, Any], origins: dict[str, Path], file: Path, prefix: str
) -> None:
    """Put a file's own values over the inherited ones, in place; `prefix` is the table's name and a dot."""
    for key, value in own.items():
        name, before = prefix + key, values.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            _lay_over(before, value, origins, file, f"{name}.")
            origins[name] = file
        elif isinstance(before, dict) and value is True:
            continue
        else:
            values.pop(key, None)
            for gone in [each for each in origins if each == name or each.startswith(f"{name}.")]:
                del origins[gone]
            if not (value == REMOVED or (isinstance(before, dict) and value is False)):
                values[key] = value
                origins.update(dict.fromkeys([name, *_keys_within(value, name)], file))


def _keys_within(value: Any, name: str) -> Iterator[str]:
    """The names of a table's keys, at any depth, with dots."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{name}.{key}"
            yield from _keys_within(inner, f"{name}.{key}")


def _name(path: Path, package: Path) -> str:
    return str(path.relative_to(package).with_suffix(""))


def _arrows(chain: list[tuple[Path, dict[str, Any]]]) -> str:
    return " -> ".join(str(file) for file, _ in chain)
