"""watched: notices that another process of a training ended or no longer answers, and ends this one too.

Without it the others would wait in their next exchange: with NCCL until its timeout, with gloo until an error
that names an address instead of a process. A launcher such as torchrun ends the processes of its own machine
itself, which may come first.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import torch
from torch.distributed import PrefixStore, Store, TCPStore

from imagereward.errors import ImageRewardError, ProcessLostError
from imagereward.tuning.distributed import gather_objects

BEAT = 2.0  # seconds between signs of life
LIMIT = 40.0  # seconds without one after which a process counts as lost
STALLED = 3 * BEAT  # between two looks at the others: this process stood still, and cannot judge them
HEARD = 3 * BEAT  # longest wait until the others have heard of an error
GRACE = 5.0  # seconds in which the main thread may raise the error itself
ANSWER = timedelta(seconds=15)  # longest wait for the store
KILLED = "ended without an error of its own: it was killed, or ran out of memory"
FAILED_EXCHANGE = ("gloo", "NCCL", "Connection reset", "Connection closed", "Broken pipe")


@contextlib.contextmanager
def watched(rank: int, ranks: int, last: Callable[[], Any]) -> Iterator[None]:
    """A context in which `ranks` processes watch each other; all of them must enter and leave it.

    last  gives the last checkpoint, for the error

    An error that leaves the context in one process is told to the others, which end with a ProcessLostError
    that quotes it. A process that is killed is noticed within seconds on the same machine, and otherwise
    after `LIMIT` seconds; a process that is stuck in an exchange then is ended with exit code 1.
    """
    if ranks == 1:
        yield
        return
    watch = _Watch(rank, ranks, last)
    try:
        yield
        # The store may be a part of the first process, which must not end while others look.
        gather_objects(None, ranks)
    except BaseException as error:
        lost = watch.verdict_on(error)
        watch.end(f"{type(error).__name__}: {error}")
        if lost is not None:
            raise ProcessLostError(lost) from error
        raise
    watch.end("")


class _Watch:
    """A thread that gives this process's signs of life and looks for those of the others."""

    def __init__(self, rank: int, ranks: int, last: Callable[[], Any]):
        self.rank, self.ranks, self.last = rank, ranks, last
        self.lost: str | None = None
        self.found, self.ended = threading.Event(), threading.Event()
        self.store = _store(gather_objects(uuid4().hex, ranks)[0])
        self.places = gather_objects(_place(), ranks)
        self.thread = threading.Thread(target=self._run, name="signs of life", daemon=True)
        self.thread.start()

    def verdict_on(self, error: BaseException) -> str | None:
        """Which process was lost, if the error is of an exchange with others; waits until that is known."""
        exchange = isinstance(error, torch.distributed.DistError) or (
            isinstance(error, RuntimeError)
            and not isinstance(error, ImageRewardError)
            and any(sign in str(error) for sign in FAILED_EXCHANGE)
        )
        if exchange:
            self.found.wait(LIMIT + 3 * BEAT)
        return self.lost if exchange else None

    def end(self, why: str) -> None:
        """Tell the others that this process ends, and stop watching; `why` is "" at the normal end.

        Waits until the others have heard of an error, which the end of the first process could hide.
        """
        self.ended.set()
        with contextlib.suppress(RuntimeError):
            self.store.set(f"ended/{self.rank}", why)
            end, others = time.monotonic() + HEARD, [rank for rank in range(self.ranks) if rank != self.rank]
            while why and not all(map(self._has_heard, others)) and time.monotonic() < end:
                time.sleep(BEAT / 20)
        self.thread.join(ANSWER.total_seconds())  # a thread in the store at the interpreter's end aborts it

    def _has_heard(self, rank: int) -> bool:
        """Whether a process knows of this one's end, or has ended itself."""
        keys = (f"heard/{self.rank}/{rank}", f"ended/{rank}")
        return any(self.store.check([key]) for key in keys) or _is_gone(self.places[rank])

    def _run(self) -> None:
        beats, now, seen = 0, time.monotonic(), dict[int, tuple[int, float]]()
        while not self.ended.wait(BEAT):
            before, now = now, time.monotonic()
            if now - before > STALLED:  # such as while a large file is packed, which stops all threads
                seen.clear()
            try:
                beats += 1
                self.store.set(f"beat/{self.rank}", str(beats))
                for rank in range(self.ranks):
                    if rank != self.rank and (why := self._missed(rank, seen, now)):
                        return self._report(why)
            except RuntimeError as error:  # of the store, which is in the first process
                if self.ended.is_set():
                    return None
                what = KILLED if _is_gone(self.places[0]) else f"ended or is out of reach ({error})"
                return self._report(f"{self._named(0)} {what}")
        return None

    def _missed(self, rank: int, seen: dict[int, tuple[int, float]], now: float) -> str | None:
        """Why the process counts as lost; None: it lives, or has ended as it should.

        seen  the number of its last sign of life by rank, and when this process first saw it
        """
        if self.store.check([f"ended/{rank}"]):
            why = self.store.get(f"ended/{rank}").decode()
            self.store.set(f"heard/{rank}/{self.rank}", "")
            return f"{self._named(rank)} ended with {why}" if why else None
        if _is_gone(self.places[rank]):
            return f"{self._named(rank)} {KILLED}"
        number = int(self.store.get(f"beat/{rank}")) if self.store.check([f"beat/{rank}"]) else 0
        before, when = seen.get(rank, (-1, now))
        if number != before:
            seen[rank] = (number, now)
        elif now - when > LIMIT:
            return f"{self._named(rank)} has not answered for {LIMIT:.0f} seconds"
        return None

    def _named(self, rank: int) -> str:
        host, _, pid = self.places[rank]
        return f"process {rank} of {self.ranks} (pid {pid} on {host})"

    def _report(self, why: str) -> None:
        self.lost = f"{why}; the last checkpoint is {self.last() or 'none'}: go on with resume=true"
        self.found.set()
        # The main thread may be in an exchange that never ends.
        if not self.ended.wait(GRACE):
            print(f"ProcessLostError: {self.lost}", file=sys.stderr, flush=True)
            os._exit(1)


def _store(name: str) -> Store:
    """The store by which the launcher's processes have found each other, over a connection of its own.

    name  of this watch, which others before it in the same processes do not have

    Raises ImageRewardError if the launcher's variables are missing.
    """
    address, port = (os.environ.get(each) for each in ("MASTER_ADDR", "MASTER_PORT"))
    if address is None or port is None:
        raise ImageRewardError(
            "the environment lacks MASTER_ADDR or MASTER_PORT, by which processes watch each other; expected "
            "those of torchrun or accelerate launch"
        )
    shared = TCPStore(address, int(port), is_master=False, timeout=ANSWER, wait_for_workers=False)
    return PrefixStore(f"imagereward/{name}", shared)


def _place() -> tuple[str, str, int]:
    """(host, name of its space of process ids, process id): processes of one space can see each other.

    The name is "" where it is not known. Two machines may have one host's name and one number of the space,
    which is the same after every start of Linux; each start has an id of its own.
    """
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = f"{start}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        space = ""
    return socket.gethostname(), space, os.getpid()


def _is_gone(place: tuple[str, str, int]) -> bool:
    """Whether a process of this machine has ended; False for those of other machines."""
    host, space, pid = place
    if not space or (host, space) != _place()[:2]:
        return False
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
