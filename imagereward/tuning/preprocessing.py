"""preprocess: encodes a training's prompts and pictures ahead, in several processes, into its caches."""

import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from imagereward.errors import ImageRewardError, InputError
from imagereward.precision import DTYPES
from imagereward.tuning.config import build
from imagereward.tuning.data.prompts import read_rows
from imagereward.tuning.data.requests import Row, prompts_of
from imagereward.tuning.families.latent_cache import CachedPictures
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.families.text_cache import CachedText, brought_text, facts_of
from imagereward.tuning.finetune import cast_frozen
from imagereward.tuning.objectives import config_class
from imagereward.tuning.objectives.config import GeneratorConfig
from imagereward.tuning.recipe import read_recipe
from imagereward.writing import remove_abandoned


class Preprocessed(NamedTuple):
    """What a run of `preprocess` found.

    rows, prompts   of the data
    encoded         files that this run wrote
    directories     of the caches, for messages
    """

    rows: int
    prompts: int
    encoded: int
    directories: str


def preprocess(
    recipe: str | os.PathLike,
    overrides: Sequence[str] = (),
    *,
    processes: int = 1,
    device: str | None = None,
) -> Preprocessed:
    """Fill the directories `text_cache` and `latent_cache` of a recipe with what its training will read.

    recipe, overrides  as `run_recipe` takes them
    processes          share the rows; each opens the model
    device             default: the GPUs in turn, else the CPU

    What preprocessed rows bring is not encoded. Every other row and prompt is encoded by itself, and its file
    is there whole or not at all: a run that was killed goes on where it stopped, and ends with the same
    bytes. Unfinished files of killed processes of this machine are removed once they are an hour old. Raises
    InputError for a recipe without data or without a cache, and for data that `read_rows` refuses;
    ImageRewardError if a process ended before its rows were done.
    """
    if processes < 1:
        raise InputError(f"processes={processes}: expected at least 1")
    values = read_recipe(recipe, list(overrides))
    values.setdefault("output", "preprocessed")
    config = build(config_class(values.get("objective", "")), values, str(recipe))
    if not (config.text_cache or config.latent_cache):
        raise InputError("nothing to fill: expected text_cache=DIRECTORY, latent_cache=DIRECTORY, or both")
    if not getattr(config, "prompts", None):
        raise InputError(f"{recipe} has no prompts=: expected a file or folder of rows")
    directories = [
        Path(name).expanduser() for name in dict.fromkeys((config.text_cache, config.latent_cache)) if name
    ]
    for directory in directories:
        remove_abandoned(directory)
    before = _files(directories)
    if processes == 1:
        _encode(values, str(recipe), 0, 1, device)
    else:
        context = multiprocessing.get_context("spawn")
        workers = [
            context.Process(target=_encode, args=(values, str(recipe), rank, processes, device))
            for rank in range(processes)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failed := [worker.exitcode for worker in workers if worker.exitcode]:
            raise ImageRewardError(
                f"{len(failed)} of {processes} processes failed (exit codes {failed}); see above, and run "
                "the same command again to go on"
            )
    rows = _rows(config, ())
    names = " and ".join(map(str, directories))
    return Preprocessed(len(rows), len(set(prompts_of(rows))), _files(directories) - before, names)


def _encode(values: dict[str, Any], recipe: str, rank: int, processes: int, device: str | None) -> None:
    """Encode every `processes`-th row and prompt, from the `rank`-th."""
    config = build(config_class(values["objective"]), values, recipe)
    where = torch.device(device or _device(rank))
    # The network's weights are not used: only its config decides about the embeddings.
    denoiser = open_denoiser(config.model, config.resolution, DTYPES[config.precision], config.family)
    cast_frozen(config, denoiser)
    for part in denoiser.frozen:
        part.to(where)
    rows = _rows(config, denoiser.inputs, denoiser.resolution, denoiser.autoencoder.shape)
    if config.text_cache:
        text = CachedText(denoiser.text, facts_of(denoiser), Path(config.text_cache), denoiser.text_sequences)
        brought = brought_text(denoiser, rows)
        own = [prompt for prompt in dict.fromkeys([*prompts_of(rows), ""]) if prompt not in brought]
        prompts = own[rank::processes]
        for prompt in tqdm(text.missing(prompts), f"prompts, process {rank}", unit="prompt", position=rank):
            text.fill([prompt])
    if config.latent_cache and denoiser.inputs:
        pictures: Any = denoiser
        cached = CachedPictures(
            pictures.pictures, denoiser.autoencoder, denoiser.resolution, Path(config.latent_cache)
        )
        for row in tqdm(
            cached.missing(rows[rank::processes]), f"rows, process {rank}", unit="row", position=rank
        ):
            cached.fill(row)


def _rows(config: GeneratorConfig, inputs: Sequence[str], *images: Any) -> list[Row]:
    """The rows of training and evaluation; `images` are the size and the latents' shape for `read_rows`."""
    rows: list[Row] = []
    if source := getattr(config, "prompts", None):
        rows += read_rows(source, inputs, config.prompt_column, config.encoding, *images)
    if source := config.evaluation.prompts:
        rows += read_rows(source, inputs, config.evaluation_column, config.encoding, *images)
    return rows


def _device(rank: int) -> str:
    count = torch.cuda.device_count()
    return f"cuda:{rank % count}" if count else "cpu"


def _files(directories: Sequence[Path]) -> int:
    return sum(1 for directory in directories for _ in directory.glob("*.safetensors"))
