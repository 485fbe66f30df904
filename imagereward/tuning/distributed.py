"""The processes of one training: how many, whether they found each other, and what each of them has."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from imagereward.errors import ImageRewardError


def is_first_process() -> bool:
    """Whether this process writes the files; launchers say so before torch.distributed can."""
    return os.environ.get("RANK", "0") == "0"


def several_on_cpus() -> bool:
    """Whether a launcher started several processes where there is no accelerator.

    Unless they are told so, accelerate and Trainer train in each as if it were alone.
    """
    accelerators = torch.accelerator if hasattr(torch, "accelerator") else torch.cuda  # before torch 2.6
    return _launched() > 1 and not accelerators.is_available()


def check_together(processes: int) -> None:
    """Raise ImageRewardError if the launcher's processes are not the `processes` that found each other."""
    if _launched() > processes:
        raise ImageRewardError(
            f"{_launched()} processes were launched (WORLD_SIZE), but {processes} found each other, and each "
            "would train alone, over the others' files; expected accelerate launch or torchrun, and as many "
            "devices as processes"
        )


def gather_objects(mine: Any, ranks: int) -> list[Any]:
    """What every process has, in order of rank. All of them call this."""
    if ranks == 1:
        return [mine]
    every: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(every, mine)
    return every


def all_reduce_sums(
    mine: Mapping[str, torch.Tensor], ranks: int, device: torch.device
) -> dict[str, list[float]]:
    """Sums over processes of [2] by name, of which each may have some. All of them call this."""
    names = list(dict.fromkeys(name for each in gather_objects(list(mine), ranks) for name in each))
    zero = torch.zeros(2, device=device)
    # On one device, which a group's backend can reach, and at once: names differ between processes.
    total = torch.stack([mine[name].to(device, torch.float32) if name in mine else zero for name in names])
    if ranks > 1:
        torch.distributed.all_reduce(total)
    return dict(zip(names, total.tolist(), strict=True))


def _launched() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
