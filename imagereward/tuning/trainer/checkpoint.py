"""What a checkpoint of a generator's training holds, and how it is written, read and removed."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from imagereward.errors import CheckpointError
from imagereward.tuning.trainer.run_directory import checkpoints, updates_of

# Weights are in a subfolder, because diffusers' load_lora_weights takes any .safetensors in its folder for
# adapters, and would silently load some of a FLUX's full weights.
WEIGHTS = "weights"
LEARNED, OPTIMIZER, OBJECTIVE, STATE = (
    f"{WEIGHTS}/learned.safetensors",
    "optimizer.pt",
    "objective.pt",
    "state.json",
)
UNFINISHED = "unfinished-"
# Gathers a sharded model's trainable weights on the first process; frozen weights are left out.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


class Contents(NamedTuple):
    """What the trainer puts into a checkpoint beside the trained weights and the optimizer's moments.

    state      the trainer's own, for state.json: `trainer.STATE_KEYS`
    snapshots  weights of the policy's snapshots, by the snapshot's name
    objective  the objective's `state_dict`

    The folder checkpoint-N: weights/learned.safetensors (trained weights), weights/NAME.safetensors for every
    snapshot (ema, reference, old), optimizer.pt, objective.pt (if the objective has state), state.json, and
    under LoRA the adapters in diffusers' format.
    """

    state: dict[str, Any]
    snapshots: dict[str, dict[str, torch.Tensor]]
    objective: dict[str, Any]


def save_checkpoint(
    directory: Path,
    update: int,
    module: Any,
    optimizer: torch.optim.Optimizer,
    contents: Contents,
    keep: int,
    first: bool,
    also: Callable[[Path, Mapping[str, torch.Tensor]], None] | None = None,
) -> Path:
    """Write `directory`/checkpoint-`update`, then remove all but the last `keep` checkpoints.

    module     the network, with accelerate's wrapper if there is one
    optimizer  its moments are saved
    contents   everything else that is saved
    first      whether this is the first process, which writes the files; all processes must call this
    also       writes more files: a function of (the checkpoint's directory, weights by name). The weights
               are those that the result would have: the snapshot "ema" if there is one, else the network's

    The checkpoint is written under another name and renamed when it is complete, so that a full disk or a
    kill leaves the previous checkpoint intact. Returns the checkpoint's path. Raises CheckpointError if it
    cannot be written.
    """
    learned = whole_weights(module)
    moments = get_optimizer_state_dict(module, optimizer, options=WHOLE)
    path = directory / f"checkpoint-{update}"
    if not first:
        return path
    unfinished = directory / f"{UNFINISHED}{path.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        (unfinished / WEIGHTS).mkdir(parents=True)
        save_file(learned, unfinished / LEARNED)
        for name, weights in contents.snapshots.items():
            save_file(weights, unfinished / WEIGHTS / f"{name}.safetensors")
        torch.save(moments, unfinished / OPTIMIZER)
        if contents.objective:
            torch.save(contents.objective, unfinished / OBJECTIVE)
        (unfinished / STATE).write_text(json.dumps(contents.state) + "\n", encoding="utf-8")
        if also is not None:
            also(unfinished, contents.snapshots.get("ema", learned))
    except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as RuntimeError
        shutil.rmtree(unfinished, ignore_errors=True)
        before = latest_state(directory)
        raise CheckpointError(
            f"{path} could not be written: {error}; the last checkpoint is {before or 'none'}"
        ) from error
    shutil.rmtree(path, ignore_errors=True)
    os.replace(unfinished, path)
    for old in checkpoints(directory)[:-keep]:
        shutil.rmtree(old)
    return path


def whole_weights(module) -> dict[str, torch.Tensor]:
    """The trainable weights by name, unsharded, on the CPU; all processes must call this.

    With sharded weights the first process gets them, the others an empty dict.
    """
    return {name: value.contiguous() for name, value in get_model_state_dict(module, options=WHOLE).items()}  # type: ignore[union-attr]


def load_checkpoint(path: Path, module: Any, optimizer: torch.optim.Optimizer) -> Contents:
    """Load a checkpoint's weights into `module` and its moments into `optimizer`; returns the rest.

    Raises CheckpointError for files that are damaged, missing, or of another model.
    """
    try:
        learned: dict[str, Any] = dict(load_file(path / LEARNED))
        moments = torch.load(path / OPTIMIZER, weights_only=True, map_location="cpu")
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        files = sorted(set(path.glob(f"{WEIGHTS}/*.safetensors")) - {path / LEARNED})
        snapshots = {file.stem: load_file(file) for file in files}
        objective = {}
        if (path / OBJECTIVE).is_file():
            objective = torch.load(path / OBJECTIVE, weights_only=True, map_location="cpu")
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    # Names only, so without gathering the weights, which the first process alone would get.
    expected = get_model_state_dict(module, options=StateDictOptions(ignore_frozen_params=True)).keys()
    if learned.keys() != expected:
        differing = sorted(learned.keys() ^ expected)
        raise CheckpointError(f"{path} is of another model: {len(differing)} names differ, {differing[:4]}")
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)
    set_model_state_dict(module, learned, options=options)
    set_optimizer_state_dict(module, optimizer, moments, options=WHOLE)
    return Contents(state, snapshots, objective)


def latest_state(directory: Path, most: int | None = None) -> Path | None:
    """The checkpoint with the most updates, of those with at most `most`; None if there is none."""
    found = [path for path in checkpoints(directory) if most is None or updates_of(path) <= most]
    return found[-1] if found else None
