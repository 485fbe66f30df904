"""Current and peak memory of this process in megabytes, on the CPU or on a GPU."""

import ctypes
import gc
from pathlib import Path

import torch


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
