"""Tensors in shards as safetensors files, written and read by torch.distributed.checkpoint.

Every process writes its own shards to a file of its own, whose header says which part of each tensor it
holds. Any number of processes can read the files, each the parts that it needs.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import distributed
from torch.distributed.checkpoint import CheckpointException

from imagereward.errors import ImageRewardError
from imagereward.tuning.sharding import is_sharded

FOLDER = "shards"
# Bytes of a file of one process, more only for one larger tensor. A file is packed in memory, and meanwhile
# no other Python thread of the process runs.
FILE_BYTES = 2**29
# Raised in every process if one cannot read or write its part.
ERRORS = (CheckpointException,)


def write(tensors: Mapping[tuple[str, str], torch.Tensor], folder: Path) -> None:
    """Write tensors by (kind, name) to a new folder; all processes must call this."""
    joined = _joined(tensors)
    dcp.save(joined, storage_writer=_writer(folder, joined))


def read(tensors: Mapping[tuple[str, str], torch.Tensor], folder: Path) -> None:
    """Read into these tensors, in place; all processes of a process group must call this."""
    reader = dcp.HuggingFaceStorageReader(str(folder))
    dcp.load(_joined(tensors), storage_reader=reader, no_dist=not distributed.is_initialized())


def names(folder: Path) -> set[tuple[str, str]]:
    """The (kind, name) of all tensors in a folder."""
    found = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    pairs = (key.partition("/") for key in found)
    return {(kind, name) for kind, _, name in pairs}


class Background:
    """Writes in a thread while training goes on, one folder at a time; all processes must use it together."""

    def __init__(self) -> None:
        # A group of its own: its messages must not get between those of the training.
        self.group: Any = distributed.new_group(backend="gloo")
        self.future: Any = None  # of the write and what follows it

    def start(
        self,
        tensors: Mapping[tuple[str, str], torch.Tensor],
        folder: Path,
        then: Callable[[], None],
    ) -> None:
        """Copy the tensors to the host's memory and start to write them.

        then  called in the thread once all processes have written all tensors; not called after an error
        """
        joined = _joined(tensors)
        written: Any = dcp.async_save(
            joined, storage_writer=_writer(folder, joined), process_group=self.group
        )
        self.future = Future()
        written.add_done_callback(partial(_follow, then=then, ended=self.future))

    def wait(self) -> None:
        """Wait until all is written and `then` has ended; raises the thread's error."""
        future, self.future = self.future, None
        future.result()


def _follow(written: Any, then: Callable[[], None], ended: Future) -> None:
    """Call `then` after a write without error, and pass its end or the error on to `ended`."""
    try:
        # The first process's write ends after it has heard from all that theirs did.
        written.result()
        then()
    except BaseException as error:  # raised again by whoever waits for `ended`
        ended.set_exception(error)
    else:
        ended.set_result(None)


def reason(error: BaseException) -> str:
    """What went wrong: of an error of several processes, the first one's own."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"process {rank}: {cause}"
    return str(error)


def _joined(tensors: Mapping[tuple[str, str], torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"/".join(key): value for key, value in tensors.items()}


def _writer(folder: Path, tensors: Mapping[str, torch.Tensor]) -> Any:
    try:
        return dcp.HuggingFaceStorageWriter(str(folder), _files(tensors), save_distributed=True)
    except (AttributeError, TypeError) as error:
        raise ImageRewardError(
            f"checkpoints of sharded weights need torch 2.9 or newer; this is {torch.__version__}"
        ) from error


def _files(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Number of the file, from 1, of each tensor in turn; the first process's numbers count for all."""
    number, filled, files = 1, 0, {}
    for name, value in tensors.items():
        size = (value.to_local() if is_sharded(value) else value).nbytes  # type: ignore[attr-defined]
        if filled and filled + size > FILE_BYTES:
            number, filled = number + 1, 0
        filled += size
        files[name] = number
    return files
