"""Training: reward models from rankings, and image generators by rewards. Needs the extra `train`.

Nothing else in the package imports it.
"""

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from imagereward.errors import InputError, missing_extra
from imagereward.main_guard import check_main_guard
from imagereward.tuning.config import build
from imagereward.tuning.data.prompts import read_rows
from imagereward.tuning.data.requests import digest_of
from imagereward.tuning.objectives import OBJECTIVES
from imagereward.tuning.recipe import laid_over, read_recipe, recipe_names

GENERATOR = "finetune:tune_generator"
# A recipe's objective -> what runs it.
RUNNERS = {
    "preference": "reward_model.train:tune_reward_model",
    "personal": "personal.train:tune_personal",
    "judge": "judges.train:tune_judge",
    **dict.fromkeys(OBJECTIVES, GENERATOR),
    "autoencoder": "from_scratch.train:tune_autoencoder",
    "clip": "from_scratch.train:tune_clip",
}

__all__ = ["evaluate", "personalise", "read_recipe", "recipe_names", "run_recipe", "tune"]


def run_recipe(recipe: str | os.PathLike, overrides: Sequence[str] = ()) -> Any:
    """Train as a recipe says, by its name or path, with `key=value` laid over it; returns what was trained.

    Raises InputError for an unknown recipe, objective or key; MissingExtraError where the extra is missing.
    """
    return _run(read_recipe(recipe, list(overrides)), str(recipe))


def tune(
    model: str | os.PathLike | Any,
    prompts: str | os.PathLike | Sequence[str] | None = None,
    *,
    reward: Any = None,
    output: str | os.PathLike | None = None,
    recipe: str | os.PathLike = "sd15/refl",
    **settings: Any,
) -> Any:
    """Fine-tune an image generator; returns the tuned diffusers pipeline, saved in `output`.

    model     a diffusers pipeline, or a directory or hub id of one
    prompts   a list, or a file of them (.json, .jsonl, .csv, .tsv, .parquet, .txt; see `read_prompts`).
              Objectives that learn from pairs of a data set have none
    reward    what `imagereward.load` takes, {name: weight}, a Scorer, or a function of (pixels, prompts);
              default: the recipe's, if it has one
    output    a new directory; may be left out where a recipe of your own names one
    recipe    a name or a file; the default is Stable Diffusion 1.x's, all weights
    settings  laid over the recipe's: `updates=200`, `gradient={"mode": "last"}`

    Raises InputError, before anything is loaded, for settings or prompts that are wrong.
    """
    values = laid_over(read_recipe(recipe), settings)
    if output is not None:
        values["output"] = str(output)
    objects: dict[str, Any] = {}
    for name, given in (("model", model), ("prompts", prompts), ("reward", reward)):
        if given is None:
            continue
        if isinstance(given, str | os.PathLike) or (name == "reward" and isinstance(given, Mapping)):
            values[name] = str(given) if isinstance(given, os.PathLike) else given
        else:
            values[name] = _described(given)
            objects[name] = given
    return _run(values, str(recipe), **objects)


def personalise(
    scorer: Any,
    choices: str | os.PathLike | Sequence[Mapping[str, Any]],
    *,
    name: str = "mine",
    output: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    encoding: str | None = None,
    folds: int = 5,
    held_out: float = 0.2,
    **settings: Any,
) -> Any:
    """Teach a loaded scorer one taste, as an adapter that is then on it; returns (adapter, summary).

    scorer    a Scorer, as `imagereward.load` gives it
    choices   a table of choices or a list of records: {prompt, images, ranking}, {prompt, chosen, rejected},
              {prompt, image, rating} or {prompt, image, good}
    name      the adapter's name on the scorer
    output    a new directory for the adapter's files; None: `adapter.save_pretrained` writes them later
    images    folder that relative image paths start at; default: the table's own
    encoding  of a text file
    folds     parts of a cross-validation, at least 2, which measures the adapter; 0: a share `held_out` of
              the prompts is held out instead, of which half selects the epoch and half measures
    settings  keys of the recipe imagereward/personal: `kind="direft"`, `rank=8`, `epochs=10`

    `summary.better` says whether the adapter is better than the scorer without it, on new images; never so
    where images recur in too many choices (`summary.recurring`). Raises InputError, naming file, record and
    field, for choices that are wrong or say nothing; MissingExtraError without the extra.
    """
    try:
        from imagereward.tuning.personal.choices import read_choices
        from imagereward.tuning.personal.config import LearningConfig
        from imagereward.tuning.personal.train import personalise_and_save
    except ImportError as error:
        raise missing_extra("training", "train", error) from error
    config = build(LearningConfig, settings, "personalise")
    read = read_choices(choices, images, encoding)
    return personalise_and_save(scorer, read, config, name, output, folds=folds, share=held_out)


def evaluate(
    scorer: Any,
    choices: str | os.PathLike | Sequence[Mapping[str, Any]],
    *,
    images: str | os.PathLike | None = None,
    encoding: str | None = None,
    batch_size: int | None = None,
) -> Any:
    """How often a scorer with an adapter agrees with choices, and without it; returns a `Measured`.

    scorer   a Scorer with adapters on it, as `imagereward.load("ImageReward-v1.0+my-taste")` gives it
    choices, images, encoding   as `personalise` takes them; choices that the adapter did not learn from

    Pairs, ratings by Spearman's correlation, and labels have 95 % intervals; each `subset` is measured too.
    Raises InputError, naming file, record and field, for choices that are wrong, and for a scorer without
    adapters; MissingExtraError without the extra.
    """
    try:
        from imagereward.tuning.personal.choices import read_choices
        from imagereward.tuning.personal.summary import evaluate as measure
    except ImportError as error:
        raise missing_extra("training", "train", error) from error
    return measure(scorer, read_choices(choices, images, encoding), batch_size)


def _run(values: dict[str, Any], source: str, **objects: Any) -> Any:
    check_main_guard()
    objective = values.get("objective") or ""
    if objective not in RUNNERS and ":" not in str(objective):
        raise InputError(f"{source}: objective={objective!r}; known: {', '.join(RUNNERS)}")
    module, name = RUNNERS.get(objective, GENERATOR).split(":")
    try:
        run = getattr(import_module(f"{__name__}.{module}"), name)
    except ImportError as error:
        raise missing_extra("training", "train", error) from error
    return run(values, source, **objects)


def _described(given: Any) -> str:
    """What run.json says of an object that has no name on disk, by which a resumed run knows it again."""
    if isinstance(given, Sequence):
        return f"a list of {len(given)}, {digest_of(read_rows(given, ()))[:12]}"
    if name := getattr(given, "name_or_path", "") or getattr(given, "name", ""):
        return str(name)
    named = given if hasattr(given, "__qualname__") else type(given)
    return f"{named.__module__}:{named.__qualname__}"
