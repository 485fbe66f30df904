"""CheckpointWriter: writes the checkpoints of a generator's training, and removes old ones."""

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from imagereward.errors import CheckpointError
from imagereward.tuning.distributed import gather_objects
from imagereward.tuning.sharding import WHOLE, whole_weights
from imagereward.tuning.trainer import shards
from imagereward.tuning.trainer.checkpoint import (
    LEARNED,
    OBJECTIVE,
    OPTIMIZER,
    STATE,
    UNWRITABLE,
    WEIGHTS,
    CheckpointContents,
    TrainingState,
    latest_state,
    sharded_tensors,
)
from imagereward.tuning.trainer.run_directory import checkpoints, write_atomically

log = logging.getLogger(__name__)

UNFINISHED = "unfinished-"


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
    leaves the previous checkpoint intact. One that a thread writes is renamed by that thread, as soon as all
    processes have written their parts, whatever the training does meanwhile.
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
        self.naming = threading.Lock()  # held while a checkpoint is renamed, or a file in it replaced

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

        Calls `finish` first, for the checkpoint before. With `background` the new checkpoint is complete once
        `finish` returns. Raises CheckpointError, in every process alike, if one cannot
        write.
        """
        self.finish()
        path = self._path(update)
        part = self._unfinished(path)
        self._alike(path, lambda: self._prepared(part), self.rank == 0)
        self._alike(path, lambda: part.resolve(strict=True), sharded)  # before a process writes elsewhere
        learned = {} if sharded and self.write_more is None else whole_weights(module)
        average, first = contents.snapshots.get("ema"), self.rank == 0
        result = learned
        if average is not None and self.write_more is not None and (first or sharded):
            result = average.state_dict()
        if not sharded:
            moments: Any = {"state": {}, "param_groups": []}
            if optimizer.state:  # else torch takes a step of zeros, which would count as the first
                moments = get_optimizer_state_dict(module, optimizer, options=WHOLE)
            # The others' are the same, and a copy of each in the host's memory is not needed.
            kept = contents.snapshots if first else {}
            snapshots = {name: each.state_dict() for name, each in kept.items()}
            self._alike(path, lambda: _write_whole(part, learned, snapshots, moments), self.rank == 0)
        self._alike(path, lambda: self._write_rest(part, contents, result), self.rank == 0)
        if sharded:
            tensors = sharded_tensors(module, optimizer, contents.snapshots, bool(optimizer.state))
            if self.background is not None:
                start, then = self.background.start, partial(self._publish, path)
                self._alike(path, lambda: start(tensors, part / shards.FOLDER, then), True)
                self.pending = path
                return path
            self._alike(path, lambda: shards.write(tensors, part / shards.FOLDER), True)
        self._alike(path, lambda: self._publish(path), True)
        return path

    def amend(self, state: TrainingState) -> None:
        """Replace the state of the checkpoint that was written last, which is of the same update.

        Raises CheckpointError, in every process alike, if it cannot be written; the state is then the one
        before.
        """
        path = self._path(state.update)
        self._alike(path, lambda: self._replace_state(path, state), self.rank == 0, keep=True)

    def finish(self) -> None:
        """Wait until the checkpoint that a thread is writing, if there is one, is there.

        Raises CheckpointError, in every process alike, if one could not write.
        """
        if self.pending is not None and self.background is not None:
            path, self.pending = self.pending, None
            self._alike(path, self.background.wait, True)

    def settle(self) -> None:
        """`finish` for a training that fails: a process may call it alone, and an error is only logged."""
        if self.pending is not None and self.background is not None:
            path, self.pending = self.pending, None
            try:
                self.background.wait()
            except (*UNWRITABLE, *shards.ERRORS) as error:
                log.warning("%s could not be written: %s", path, shards.reason(error))

    def _publish(self, path: Path) -> None:
        """In the first process: rename the complete checkpoint, and remove old ones."""
        if self.rank > 0:
            return
        with self.naming:
            _replace(self._unfinished(path), path)
        for old in checkpoints(self.directory)[: -self.keep]:
            try:
                shutil.rmtree(old)
            except OSError as error:  # tried again after the next checkpoint
                log.warning("%s, an old checkpoint, could not be removed: %s", old, error)

    def _replace_state(self, path: Path, state: TrainingState) -> None:
        with self.naming:
            part = self._unfinished(path)
            write_atomically((part if part.is_dir() else path) / STATE, _text(state))

    def _path(self, update: int) -> Path:
        return self.directory / f"checkpoint-{update}"

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
        (part / STATE).write_text(_text(contents.state), encoding="utf-8")
        if self.write_more is not None:
            self.write_more(part, result)

    def _alike(self, path: Path, act: Callable[[], Any], mine: bool, keep: bool = False) -> None:
        """Call `act` where `mine` is true; raise in every process if it failed in one.

        keep  keep a checkpoint that is written in part; otherwise it is removed
        """
        failed = None
        if mine:
            try:
                act()
            except (*UNWRITABLE, *shards.ERRORS) as error:
                failed = shards.reason(error)
        found = gather_objects(failed, self.ranks)
        if not any(found):
            return
        if self.rank == 0 and not keep:
            with suppress(OSError):
                shutil.rmtree(self._unfinished(path))
        which = [f"process {rank}: {why}" if self.ranks > 1 else why for rank, why in enumerate(found) if why]
        raise CheckpointError(
            f"{path} could not be written: {'; '.join(which)}; the last checkpoint is "
            f"{latest_state(self.directory) or 'none'}"
        )


def _write_whole(part: Path, learned, snapshots: Mapping[str, Any], moments) -> None:
    (part / WEIGHTS).mkdir()
    save_file(learned, part / LEARNED)
    for name, weights in snapshots.items():
        save_file(weights, part / WEIGHTS / f"{name}.safetensors")
    torch.save(moments, part / OPTIMIZER)


def _text(state: TrainingState) -> str:
    return json.dumps(state._asdict()) + "\n"


def _replace(unfinished: Path, path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.replace(unfinished, path)
