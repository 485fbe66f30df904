"""process_key: tells a process from processes forked from it, which must not share its sockets."""

import os

_forks = 0  # forks between the process that first imported this module and this process


def _count() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_count)


def process_key() -> tuple[int, int]:
    """(process id, number of forks): differs between a process and all processes forked from it.

    The process id alone is not enough: the system reuses ids, so a grandchild can have the id of the process
    that opened a handle.
    """
    return os.getpid(), _forks
