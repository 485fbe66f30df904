"""What a checkpoint of a generator's or a judge's training holds, and how it is read.

`checkpoint_writer` writes it. Reward models and personal adapters have those of transformers' Trainer.
"""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from imagereward.errors import CheckpointError
from imagereward.tuning.policy.snapshots import Snapshot
from imagereward.tuning.sharding import WHOLE, is_sharded
from imagereward.tuning.trainer import shards
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
# Errors of files that are missing, damaged or cannot be written; torch reports a full disk as RuntimeError.
UNREADABLE = (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError)
UNWRITABLE = (OSError, RuntimeError, SafetensorError)


class TrainingState(NamedTuple):
    """The trainer's own state, for state.json.

    update         finished updates
    updates        planned updates
    ended          why the training ended early; "" if it did not
    history        the logged numbers
    scaler         state of float16's gradient scaler; None without one
    steps          steps of the optimizer since the start of training
    to_evaluate    whether the evaluation after this update was due, and had not ended when this was written
    """

    update: int
    updates: int
    ended: str
    history: list[dict[str, Any]]
    scaler: dict[str, Any] | None
    steps: int
    to_evaluate: bool = False

    @classmethod
    def read(cls, path: Path) -> "TrainingState":
        """The state in a checkpoint's folder; CheckpointError for keys of another version."""
        values = json.loads((path / STATE).read_text(encoding="utf-8"))
        try:
            return cls(**values)
        except TypeError as error:
            raise CheckpointError(f"{path} was not written by this version: {error}") from error


class CheckpointContents(NamedTuple):
    """The part of a checkpoint that is neither the trained weights nor the optimizer's moments.

    state      the trainer's own, for state.json
    snapshots  the policy's snapshots by name
    objective  the objective's `state_dict`

    The whole folder OUTPUT/checkpoint-N: weights/learned.safetensors (trained weights),
    weights/NAME.safetensors for every snapshot (reference, old, average, ema, base; best of judges) and
    optimizer.pt, or shards/ in place of them where the weights are sharded (`trainer/shards.py`);
    objective.pt (if the objective has state), state.json, and under LoRA the adapters in diffusers' format.
    """

    state: TrainingState
    snapshots: dict[str, Snapshot]
    objective: dict[str, Any]


def load_checkpoint(
    path: Path,
    module: Any,
    optimizer: torch.optim.Optimizer,
    snapshots: dict[str, Snapshot],
    new: Callable[[], Snapshot],
) -> tuple[TrainingState, dict[str, Any]]:
    """Load a checkpoint's weights, moments and snapshots in place; returns (state, the objective's state).

    snapshots  the policy's snapshots by name; those that only the checkpoint has are added
    new        makes a snapshot of the network

    The weights of module and checkpoint may be sharded differently, or one of them not at all. Raises
    CheckpointError for files that are damaged, missing, of another model, or of another version.
    """
    # Names only, so without gathering the weights, which the first process alone would get.
    names = set(get_model_state_dict(module, options=StateDictOptions(ignore_frozen_params=True)))
    try:
        state = TrainingState.read(path)
        objective = {}
        if (path / OBJECTIVE).is_file():
            objective = torch.load(path / OBJECTIVE, weights_only=True, map_location="cpu")
        if (path / shards.FOLDER).is_dir():
            kept = shards.names(path / shards.FOLDER)
            _check_names(path, names, {name for kind, name in kept if kind == "learned"})
            for kind in {kind for kind, _ in kept} - {"learned", "optimizer"}:
                snapshots.setdefault(kind, new())
            stepped = any(kind == "optimizer" for kind, _ in kept)
            _read_shards(path, module, optimizer, snapshots, stepped)
        else:
            _read_whole(path, names, module, optimizer, snapshots, new)
    except (*UNREADABLE, *shards.ERRORS) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {shards.reason(error)}") from error
    return state, objective


def sharded_tensors(
    module: Any, optimizer: torch.optim.Optimizer, snapshots: Mapping[str, Snapshot], stepped: bool
) -> dict[tuple[str, str], torch.Tensor]:
    """All tensors of a checkpoint by (kind, name): kind is "learned", "optimizer", or a snapshot's name.

    stepped  whether the optimizer has made a step; before its first one it has no tensors
    """
    learned = get_model_state_dict(module, options=StateDictOptions(ignore_frozen_params=True))
    tensors: dict[tuple[str, str], Any] = {("learned", name): value for name, value in learned.items()}
    moments: Any = get_optimizer_state_dict(module, optimizer)["state"] if stepped else {}
    for name, parts in moments.items():
        tensors |= {("optimizer", f"{name}/{part}"): value for part, value in parts.items()}
    for kind, snapshot in snapshots.items():
        tensors |= {(kind, name): value for name, value in snapshot.weights.items()}
    return tensors


def _read_shards(path: Path, module: Any, optimizer: torch.optim.Optimizer, snapshots, stepped: bool) -> None:
    tensors = sharded_tensors(module, optimizer, snapshots, stepped)
    shards.read(tensors, path / shards.FOLDER)
    learned: dict[str, Any] = {name: value for (kind, name), value in tensors.items() if kind == "learned"}
    set_model_state_dict(module, learned, options=StateDictOptions(strict=False))
    if not stepped:
        return
    moments: Any = get_optimizer_state_dict(module, optimizer)
    for (kind, name), value in tensors.items():
        if kind == "optimizer":
            parameter, _, part = name.rpartition("/")
            moments["state"][parameter][part] = value
    set_optimizer_state_dict(module, optimizer, moments)


def _read_whole(
    path: Path, names: set[str], module: Any, optimizer: torch.optim.Optimizer, snapshots, new
) -> None:
    """Load weights that are whole; of sharded ones each process keeps its part, one file after the other."""
    learned: dict[str, Any] = dict(load_file(path / LEARNED))
    _check_names(path, names, set(learned))
    set_model_state_dict(
        module, learned, options=StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)
    )
    del learned
    sharded = is_sharded(module)
    moments = torch.load(path / OPTIMIZER, weights_only=True, map_location="cpu", mmap=sharded)
    if sharded:  # each process reads its part from the file; numbers of steps must not need the file later
        for parts in moments["state"].values():
            parts |= {part: value.clone() for part, value in parts.items() if value.dim() == 0}
    if moments["state"]:
        set_optimizer_state_dict(module, optimizer, moments, options=WHOLE)
    del moments
    for file in sorted(set(path.glob(f"{WEIGHTS}/*.safetensors")) - {path / LEARNED}):
        snapshots.setdefault(file.stem, new()).load_state_dict(load_file(file))


def _check_names(path: Path, expected: set[str], found: set[str]) -> None:
    if differing := sorted(expected ^ found):
        raise CheckpointError(f"{path} is of another model: {len(differing)} names differ, {differing[:4]}")


def latest_state(directory: Path, most: int | None = None) -> Path | None:
    """The checkpoint with the most updates, of those with at most `most`; None if there is none."""
    found = [path for path in checkpoints(directory) if most is None or updates_of(path) <= most]
    return found[-1] if found else None


def state_to_resume(directory: Path, updates: int) -> Path | None:
    """The checkpoint that a run of `updates` updates goes on from; None if the directory has none at all.

    Raises CheckpointError if all of its checkpoints have more updates.
    """
    path = latest_state(directory, updates)
    if path is None and (last := latest_state(directory)):
        raise CheckpointError(
            f"{directory} has checkpoints, but there is none of at most {updates} updates; the last is "
            f"{last.name}. Ask for as many updates, or train anew into another directory"
        )
    return path
