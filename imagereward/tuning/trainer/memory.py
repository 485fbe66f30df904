"""keep_freed_memory: lets a training on the CPU reuse freed memory instead of returning it to the system."""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory instead of returning it to the system; elsewhere, do nothing.

    Training frees and allocates activations of some megabytes thousands of times a second, and each new page
    costs a page fault. The setting holds for the whole process. Peak memory stays the same; memory between
    peaks is higher.
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
