"""Training: reward models from rankings. Needs the extra `train`; nothing else in the package imports it."""

import os
from importlib import import_module
from typing import Any

from imagereward.errors import ImageRewardError, InputError
from imagereward.tuning.config import read_recipe, recipe_names

# A recipe's objective -> what runs it.
RUNNERS = {"preference": "imagereward.tuning.reward_model:tune_reward_model"}

__all__ = ["read_recipe", "recipe_names", "tune"]


def tune(recipe: str | os.PathLike, overrides: list[str] | tuple[str, ...] = ()) -> Any:
    """Train as a recipe says, by its name or path, with `key=value` laid over it; returns what was trained.

    Raises InputError for an unknown recipe, objective or key; ImageRewardError where the extra is missing.
    """
    objective = read_recipe(recipe, overrides).get("objective")
    if objective not in RUNNERS:
        raise InputError(f"{recipe}: objective={objective!r}; known: {', '.join(RUNNERS)}")
    module, name = RUNNERS[objective].split(":")
    try:
        run = getattr(import_module(module), name)
    except ImportError as error:
        raise ImageRewardError(
            f"training needs more: python -m pip install 'imagereward[train]' ({error})"
        ) from error
    return run(recipe, overrides)
