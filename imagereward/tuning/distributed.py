"""The processes of a training: their number, checks that they found each other, gathering and sums."""

import os
import re
from collections.abc import Mapping
from typing import Any

import torch

from imagereward.errors import ImageRewardError, InputError


def is_first_process() -> bool:
    """Whether this is the process that writes files: the launcher's environment variable RANK is 0 or unset.

    Known before torch.distributed is initialised.
    """
    return os.environ.get("RANK", "0") == "0"


def processes_here() -> int:
    """The number of processes that the launcher started on this machine; 1 without a launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def several_on_cpus() -> bool:
    """Whether a launcher started several processes on a machine without a GPU or another accelerator.

    accelerate and transformers' Trainer must be told to use CPUs then; otherwise each process trains alone.
    """
    accelerators = torch.accelerator if hasattr(torch, "accelerator") else torch.cuda  # before torch 2.6
    return _launched() > 1 and not accelerators.is_available()


def check_together(processes: int) -> None:
    """Raises ImageRewardError if the launcher started more processes than the `processes` that are joined."""
    if _launched() > processes:
        raise ImageRewardError(
            f"{_launched()} processes were launched (WORLD_SIZE), but {processes} found each other, and each "
            "would train alone, over the others' files; expected accelerate launch or torchrun, and as many "
            "devices as processes"
        )


def check_first_gpu(device: torch.device | str | None) -> None:
    """Raises InputError for a GPU such as "cuda:1", on which transformers' Trainer cannot train.

    TrainingArguments moves a process that is alone to the first GPU that it sees. Processes of a launcher
    have a GPU each, whatever `device` is.
    """
    number = re.fullmatch(r"cuda:0*([1-9]\d*)", str(device))
    if number and not launched_together():
        raise InputError(
            f"device={str(device)!r}: this training runs on the first GPU that the process sees; set the "
            f"environment variable CUDA_VISIBLE_DEVICES={number[1]} before Python starts, and take "
            'device="cuda"'
        )


def gather_objects(mine: Any, ranks: int) -> list[Any]:
    """The objects `mine` of all `ranks` processes, in order of rank; all processes must call this."""
    if ranks == 1:
        return [mine]
    every: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(every, mine)
    return every


def add_share(sums: dict[str, torch.Tensor], name: str, value: torch.Tensor, share: float) -> None:
    """Add (share * value, share) to sums[name], [2]; their quotient is the weighted mean."""
    value = value.detach().float()
    part = torch.stack([value * share, torch.full_like(value, share)])
    sums[name] = sums[name] + part if name in sums else part


def all_reduce_sums(
    mine: Mapping[str, torch.Tensor], ranks: int, device: torch.device
) -> dict[str, list[float]]:
    """{name: sum over processes of a tensor [2]}; all processes must call this.

    mine    this process's tensors [2] by name; a name that a process lacks counts as 0
    device  a device that the process group's backend can reach
    """
    names = list(dict.fromkeys(name for each in gather_objects(list(mine), ranks) for name in each))
    zero = torch.zeros(2, device=device)
    # One reduction of all names, because the processes' names differ.
    total = torch.stack([mine[name].to(device, torch.float32) if name in mine else zero for name in names])
    if ranks > 1:
        torch.distributed.all_reduce(total)
    return dict(zip(names, total.tolist(), strict=True))


def wait_for_everyone() -> None:
    """Wait until all processes are here; returns at once where processes have not been joined."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def of_first_process(value: Any) -> Any:
    """The first process's object `value`; all joined processes must call this."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    shared = [value]
    torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]


def rank_and_ranks() -> tuple[int, int]:
    """(this process's rank, number of joined processes)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def launched_together() -> bool:
    """Whether a launcher started this process with others."""
    return _launched() > 1


def _launched() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
