"""add_adapter and remove_adapter: put a saved or a new adapter on a scorer, and take it off."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from imagereward.adapters.base import Adapter
from imagereward.adapters.collection import Adapters
from imagereward.adapters.files import PREFIX, WEIGHTS_FILE, check_base, read_adapter
from imagereward.config import AdapterConfig
from imagereward.precision import on_cpu

# The directory of a saved adapter, or the config of a new one.
Source = str | os.PathLike | AdapterConfig


def add_adapter(
    scorer: Any,
    adapter: Source,
    name: str | None = None,
    scale: float | None = None,
) -> Adapter:
    """Put an adapter on the scorer, after those that are on it; returns it.

    scorer   a `Scorer`
    adapter  the directory of a saved one, or the config of a new one, whose delta is 0 for most kinds
    name     its name on this scorer; default: the config's
    scale    its strength; default: the config's, 1 if it was not changed

    Raises CheckpointError for a directory without an adapter, a damaged one, and one made for another base,
    or to be on top of other adapters than are on; InputError for a second adapter of one name, unknown
    modules, modules that an ensemble shares, a rank above their width, and a compiled scorer.
    """
    weights, directory, source = None, None, ""
    if isinstance(adapter, AdapterConfig):
        config = adapter
    else:
        source = os.fspath(adapter)
        directory = Path(source).expanduser()
        config, weights = read_adapter(directory)
        check_base(config, scorer, source)
        scorer.adapters.check_beneath(config, source)
    if name is not None:
        config = replace(config, name=name)
    if scale is not None:
        config = replace(config, scale=scale)
    with on_cpu():
        added = scorer.adapters.add(scorer, config, scorer.token_streams(), weights, directory=directory)
    scorer.config = replace(scorer.config, adapters=scorer.adapters.configs)
    if directory is not None:
        scorer.files[f"{PREFIX}{config.name}."] = (directory / WEIGHTS_FILE).resolve()
    return added


def check_ran(scorer: Any, encoded: bool) -> None:
    """Raises InputError for an adapter of the scorer, or of an ensemble's component, with modules that the
    model did not call when it scored.

    encoded  whether images were encoded, rather than their features taken from a cache
    """
    for each in (scorer, *getattr(scorer, "parts", ())):
        if isinstance(adapters := getattr(each, "adapters", None), Adapters):
            adapters.check_ran(() if encoded else each.image_prefixes)


def remove_adapter(scorer: Any, name: str) -> None:
    """Take an adapter off the scorer, and its label off the scorer's name. InputError if it is not on it."""
    label = scorer.adapters[name].label
    scorer.adapters.remove(scorer, name)
    if label and scorer.name.endswith(label):
        scorer.name = scorer.name.removesuffix(label)
    elif label:
        scorer.name = scorer.name.replace(f"{label}+", "+", 1)
    scorer.config = replace(scorer.config, adapters=scorer.adapters.configs)
    scorer.files.pop(f"{PREFIX}{name}.", None)
