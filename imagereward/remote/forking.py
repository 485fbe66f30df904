"""Telling processes apart, for handles that a fork must not share (sockets, above all)."""

import os

_forks = 0  # forks between this process and the one that first imported this module


def _count() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_count)


def process_key() -> tuple[int, int]:
    """(process id, forks): differs between a process and each process forked from it.

    The process id alone is not enough: the system reuses ids, so a grandchild can have the id of the process
    that opened a handle.
    """
    return os.getpid(), _forks
