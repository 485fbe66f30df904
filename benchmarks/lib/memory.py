"""Megabytes that a process holds, now and at most, on the CPU and on a GPU."""

import ctypes
import gc
from pathlib import Path

import torch


def resident(device: torch.device) -> float:
    """Megabytes held now, after everything freed was given back."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return status("VmRSS")


def reset_peak(device: torch.device) -> None:
    """Let the peak begin anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> float:
    """The most megabytes since `reset_peak`."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else status("VmHWM")


def status(key: str) -> float:
    """A size in /proc/self/status, in megabytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024
