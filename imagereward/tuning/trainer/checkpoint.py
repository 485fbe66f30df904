"""What a checkpoint of a generator's training holds, and how it is written, read and removed."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
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
from imagereward.tuning.distributed import gather_objects
from imagereward.tuning.policy.snapshots import Snapshot
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
UNFINISHED = "unfinished-"
# Gathers a sharded model's trainable weights on the first process; frozen weights are left out.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
# Errors of files that are missing, damaged or cannot be written; torch reports a full disk as RuntimeError.
UNREADABLE = (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError)
UNWRITABLE = (OSError, RuntimeError, SafetensorError)


class CheckpointContents(NamedTuple):
    """What the trainer puts into a checkpoint beside the trained weights and the optimizer's moments.

    state      the trainer's own, for state.json: `trainer.STATE_KEYS`
    snapshots  the policy's snapshots by name
    objective  the objective's `state_dict`

    The folder checkpoint-N: weights/learned.safetensors (trained weights), weights/NAME.safetensors for every
    snapshot (ema, reference, old) and optimizer.pt, or shards/ in place of them where the weights are sharded
    (`trainer/shards.py`); objective.pt (if the objective has state), state.json, and under LoRA the adapters
    in diffusers' format.
    """

    state: dict[str, Any]
    snapshots: dict[str, Snapshot]
    objective: dict[str, Any]


class CheckpointWriter:
    """Writes the checkpoints of a run; all processes must call its methods together.

    directory   the run's directory
    keep        number of newest checkpoints that are kept
    rank, ranks index of this process, and the number of processes
    background  write shards in a thread while training goes on, from a copy in the host's memory
    write_more  writes more files into every checkpoint: a function of (the checkpoint's directory, weights by
                name), called in the first process. The weights are those that the result would have: the
                snapshot "ema" if there is one, else the network's

    A checkpoint is written under another name and renamed when it is complete, so that a full disk or a kill
    leaves the previous checkpoint intact.
    """

    def __init__(
        self,
        directory: Path,
        keep: int,
        rank: int,
        ranks: int,
        background: bool = False,
        write_more: Callable[[Path, Mapping[str, torch.Tensor]], None] | None = None,
    ):
        self.directory, self.keep, self.rank, self.ranks = directory, keep, rank, ranks
        self.write_more = write_more
        self.background = shards.Background() if background else None
        self.pending: Path | None = None  # the checkpoint that a thread is writing

    def save(
        self,
        update: int,
        module: Any,
        optimizer: torch.optim.Optimizer,
        contents: CheckpointContents,
        sharded: bool,
    ) -> Path:
        """Write checkpoint-`update`, then remove all but the last `keep` checkpoints; returns its path.

        module     the network, with accelerate's wrapper if there is one
        optimizer  its moments are saved
        sharded    True: each process writes its shards; False: the first process writes all weights

        Calls `finish` first, for the checkpoint before. With `background` the new checkpoint is complete only
        after the next call of `finish`. Raises CheckpointError, in every process alike, if one cannot write.
        """
        self.finish()
        path = self.directory / f"checkpoint-{update}"
        self.pending, part = path, self._unfinished(path)
        self._alike(path, lambda: self._prepared(part), self.rank == 0)
        self._alike(path, lambda: part.resolve(strict=True), sharded)  # before a process writes elsewhere
        learned = {} if sharded and self.write_more is None else whole_weights(module)
        average = contents.snapshots.get("ema")
        result = learned if average is None or self.write_more is None else average.state_dict()
        if not sharded:
            moments = get_optimizer_state_dict(module, optimizer, options=WHOLE)
            snapshots = {name: each.state_dict() for name, each in contents.snapshots.items()}
            self._alike(path, lambda: _write_whole(part, learned, snapshots, moments), self.rank == 0)
        self._alike(path, lambda: self._write_rest(part, contents, result), self.rank == 0)
        if sharded:
            tensors = _sharded_tensors(module, optimizer, contents.snapshots)
            if self.background is not None:
                start = partial(self.background.start, tensors, part / shards.FOLDER)
                self._alike(path, start, True)
                return path
            self._alike(path, lambda: shards.write(tensors, part / shards.FOLDER), True)
        self._publish()
        return path

    def finish(self) -> None:
        """Wait for the checkpoint that a thread is writing, if there is one, and make it visible."""
        if self.pending is not None and self.background is not None:
            self._alike(self.pending, self.background.wait, True)
            self._publish()

    def _publish(self) -> None:
        """Rename the complete checkpoint, and remove old ones."""
        path = self.pending
        assert path is not None
        self._alike(path, lambda: _replace(self._unfinished(path), path), self.rank == 0)
        self.pending = None
        if self.rank == 0:
            for old in checkpoints(self.directory)[: -self.keep]:
                shutil.rmtree(old)

    def _unfinished(self, path: Path) -> Path:
        return self.directory / f"{UNFINISHED}{path.name}"

    @staticmethod
    def _prepared(part: Path) -> None:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)

    def _write_rest(
        self, part: Path, contents: CheckpointContents, result: Mapping[str, torch.Tensor]
    ) -> None:
        if contents.objective:
            torch.save(contents.objective, part / OBJECTIVE)
        (part / STATE).write_text(json.dumps(contents.state) + "\n", encoding="utf-8")
        if self.write_more is not None:
            self.write_more(part, result)

    def _alike(self, path: Path, act: Callable[[], Any], mine: bool) -> None:
        """Call `act` where `mine` is true; raise in every process if it failed in one."""
        failed = None
        if mine:
            try:
                act()
            except (*UNWRITABLE, *shards.ERRORS) as error:
                failed = shards.reason(error)
        found = gather_objects(failed, self.ranks)
        if not any(found):
            return
        if self.rank == 0:
            with suppress(OSError):
                shutil.rmtree(self._unfinished(path))
        self.pending = None
        which = [f"process {rank}: {why}" if self.ranks > 1 else why for rank, why in enumerate(found) if why]
        raise CheckpointError(
            f"{path} could not be written: {'; '.join(which)}; the last checkpoint is "
            f"{latest_state(self.directory) or 'none'}"
        )


def whole_weights(module) -> dict[str, torch.Tensor]:
    """The trainable weights by name, unsharded, on the CPU; all processes must call this.

    With sharded weights the first process gets them, the others an empty dict.
    """
    return {name: value.contiguous() for name, value in get_model_state_dict(module, options=WHOLE).items()}  # type: ignore[union-attr]


def load_checkpoint(
    path: Path,
    module: Any,
    optimizer: torch.optim.Optimizer,
    snapshots: dict[str, Snapshot],
    new: Callable[[], Snapshot],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load a checkpoint's weights, moments and snapshots in place; returns (state, the objective's state).

    snapshots  the policy's snapshots by name; those that only the checkpoint has are added
    new        makes a snapshot of the network

    The weights of module and checkpoint may be sharded differently, or one of them not at all. Raises
    CheckpointError for files that are damaged, missing, or of another model.
    """
    # Names only, so without gathering the weights, which the first process alone would get.
    names = set(get_model_state_dict(module, options=StateDictOptions(ignore_frozen_params=True)))
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        objective = {}
        if (path / OBJECTIVE).is_file():
            objective = torch.load(path / OBJECTIVE, weights_only=True, map_location="cpu")
        if (path / shards.FOLDER).is_dir():
            kept = shards.names(path / shards.FOLDER)
            _check_names(path, names, {name for kind, name in kept if kind == "learned"})
            for kind in {kind for kind, _ in kept} - {"learned", "optimizer"}:
                snapshots.setdefault(kind, new())
            _read_shards(path, module, optimizer, snapshots)
        else:
            _read_whole(path, names, module, optimizer, snapshots, new)
    except (*UNREADABLE, *shards.ERRORS) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {shards.reason(error)}") from error
    return state, objective


def _sharded_tensors(
    module: Any, optimizer: torch.optim.Optimizer, snapshots: Mapping[str, Snapshot]
) -> dict[tuple[str, str], torch.Tensor]:
    """All tensors of a checkpoint by (kind, name): kind is "learned", "optimizer", or a snapshot's name."""
    learned = get_model_state_dict(module, options=StateDictOptions(ignore_frozen_params=True))
    tensors: dict[tuple[str, str], Any] = {("learned", name): value for name, value in learned.items()}
    moments: Any = get_optimizer_state_dict(module, optimizer)["state"]
    for name, parts in moments.items():
        tensors |= {("optimizer", f"{name}/{part}"): value for part, value in parts.items()}
    for kind, snapshot in snapshots.items():
        tensors |= {(kind, name): value for name, value in snapshot.weights.items()}
    return tensors


def _read_shards(path: Path, module: Any, optimizer: torch.optim.Optimizer, snapshots) -> None:
    tensors = _sharded_tensors(module, optimizer, snapshots)
    shards.read(tensors, path / shards.FOLDER)
    moments: Any = get_optimizer_state_dict(module, optimizer)
    for (kind, name), value in tensors.items():
        if kind == "optimizer":
            parameter, _, part = name.rpartition("/")
            moments["state"][parameter][part] = value
    learned: dict[str, Any] = {name: value for (kind, name), value in tensors.items() if kind == "learned"}
    set_model_state_dict(module, learned, options=StateDictOptions(strict=False))
    set_optimizer_state_dict(module, optimizer, moments)


def _write_whole(part: Path, learned, snapshots: Mapping[str, Any], moments) -> None:
    (part / WEIGHTS).mkdir()
    save_file(learned, part / LEARNED)
    for name, weights in snapshots.items():
        save_file(weights, part / WEIGHTS / f"{name}.safetensors")
    torch.save(moments, part / OPTIMIZER)


def _read_whole(
    path: Path, names: set[str], module: Any, optimizer: torch.optim.Optimizer, snapshots, new
) -> None:
    learned: dict[str, Any] = dict(load_file(path / LEARNED))
    moments = torch.load(path / OPTIMIZER, weights_only=True, map_location="cpu")
    files = sorted(set(path.glob(f"{WEIGHTS}/*.safetensors")) - {path / LEARNED})
    weights = {file.stem: load_file(file) for file in files}
    _check_names(path, names, set(learned))
    set_model_state_dict(
        module, learned, options=StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)
    )
    set_optimizer_state_dict(module, optimizer, moments, options=WHOLE)
    for name, values in weights.items():
        snapshots.setdefault(name, new()).load_state_dict(values)


def _check_names(path: Path, expected: set[str], found: set[str]) -> None:
    if differing := sorted(expected ^ found):
        raise CheckpointError(f"{path} is of another model: {len(differing)} names differ, {differing[:4]}")


def _replace(unfinished: Path, path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.replace(unfinished, path)


def latest_state(directory: Path, most: int | None = None) -> Path | None:
    """The checkpoint with the most updates, of those with at most `most`; None if there is none."""
    found = [path for path in checkpoints(directory) if most is None or updates_of(path) <= most]
    return found[-1] if found else None
