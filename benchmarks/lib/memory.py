"""Current and peak memory of this process in megabytes, on the CPU or on a GPU; bytes of tensors alive."""

import ctypes
import gc
import weakref
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def resident(device: torch.device) -> float:
    """Megabytes held now; on the CPU after freed memory was returned to the system."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return status("VmRSS")


def reset_peak(device: torch.device) -> None:
    """Reset the peak that `peak` reports."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> float:
    """Peak megabytes since `reset_peak`."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else status("VmHWM")


def status(key: str) -> float:
    """A size in /proc/self/status, such as VmRSS, in megabytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


class Count(TorchDispatchMode):
    """Bytes of the tensors made within that are alive, and the most there were.

    Also of torch's fake tensors, which have no values.
    """

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self.storages = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage() not in self.storages:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage) -> None:
        self.storages.add(storage)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._drop, storage.nbytes())

    def _drop(self, size: int) -> None:
        self.alive -= size
