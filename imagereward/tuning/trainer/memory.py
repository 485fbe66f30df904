"""Memory that a training on the CPU frees and takes again in every step."""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Ask glibc to keep what is freed instead of giving it back to the system; elsewhere, do nothing.

    Activations of some megabytes are freed and taken again thousands of times a second; as fresh pages, each
    costs faults. Takes effect for the whole process. Peak memory is unchanged, memory between peaks is not.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 * 2**20)
    mallopt(mmap_threshold, 2**30)
