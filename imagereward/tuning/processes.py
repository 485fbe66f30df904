"""The processes of one training, as launchers announce them in the environment."""

import os

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


def _launched() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
