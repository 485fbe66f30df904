"""A pool of worker processes that answer requests in order, ahead of their use."""

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any, Protocol

import torch

from imagereward.bulk.decoding.processes import end_with_parent, ending, guard_hint, imports_the_script
from imagereward.errors import ImageRewardError
from imagereward.precision import on_cpu

# Requests in progress for each process, beyond the answer that is being used.
AHEAD = 2
# Seconds to wait for a killed process to end.
PATIENCE = 5


class Work(Protocol):
    """Computes the answer to a request: `work[request]`. Both are pickled and sent through pipes."""

    def __getitem__(self, request: Any) -> Any: ...


class Decoders:
    """`workers` processes that apply `work` to requests; 0 uses one thread of this process instead.

    Every process has its own pipe and thread here. If a process dies, its pipe closes and its request fails
    at once; with a shared queue the reader could wait for ever for the rest of a message. Create and close
    this object in one thread, which must live longer than the processes.
    """

    def __init__(self, work: Work, workers: int):
        self.work = work
        self.processes: list[_Process] = []
        self.free: SimpleQueue[_Process] = SimpleQueue()
        self.most = AHEAD * max(1, workers)
        self.threads = ThreadPoolExecutor(max(1, workers), "imagereward-decode")
        try:
            for _ in range(workers):
                self.processes.append(_Process(work))
                self.free.put(self.processes[-1])
        except BaseException:
            self.close()
            raise

    def answers(self, requests: Iterable[Any]) -> Generator[Any, None, None]:
        """The answers in order of the requests, `AHEAD` of them per process computed in advance.

        Raises ImageRewardError if a process dies.
        """
        ahead: deque[Future] = deque()
        for request in requests:
            ahead.append(self.threads.submit(self._answer, request))
            if len(ahead) > self.most:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def close(self) -> None:
        """Kill the processes, even during a request."""
        for process in self.processes:
            process.kill()
        self.threads.shutdown(cancel_futures=True)
        for process in self.processes:
            process.connection.close()

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _answer(self, request: Any) -> Any:
        if not self.processes:
            return self.work[request]
        process = self.free.get()
        try:
            return process.ask(request)
        finally:
            self.free.put(process)


class _Process:
    """One decoding process, and this process's end of its pipe."""

    def __init__(self, work: Work):
        self.connection, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(
            target=_serve, args=(theirs, work), name="imagereward-decode", daemon=True
        )
        self.ready = False
        try:
            self.process.start()
        except (OSError, EOFError) as error:
            hint = guard_hint() if imports_the_script() else "fewer workers need fewer processes (workers=)"
            raise ImageRewardError(f"a decoding process could not be started ({error!r}): {hint}") from error
        finally:
            theirs.close()  # the pipe then closes when the process ends

    def ask(self, request: Any) -> Any:
        """Send a request and wait for its answer. Raises ImageRewardError if the process dies first."""
        try:
            if not self.ready:
                self._receive()
                self.ready = True
            self.connection.send(request)
            return self._receive()
        except (EOFError, OSError) as error:
            raise ImageRewardError(self._death()) from error

    def kill(self) -> None:
        """Kill the process and wait for its end."""
        with contextlib.suppress(ValueError):
            self.process.kill()
            self.process.join(PATIENCE)

    def _receive(self) -> Any:
        # Another forked process may hold the pipe open, so the end of the process is watched as well.
        if self.connection not in wait([self.connection, self.process.sentinel]):
            raise EOFError
        return self.connection.recv()

    def _death(self) -> str:
        self.process.join(PATIENCE)
        how = ending(self.process.exitcode)
        if not self.ready and imports_the_script():
            return f"a decoding process could not be started ({how}): {guard_hint()}"
        return (
            f"a process that decodes images {how}. Finished parts are kept: the same call goes on from there "
            "(fewer workers= or smaller part_rows= need less memory)"
        )


def _serve(connection: Connection, work: Work) -> None:
    """The main function of a decoding process: answer requests until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # drops a handler inherited from the parent
    end_with_parent()
    torch.set_num_threads(1)  # torch's threads do not survive a fork; parallelism comes from processes
    try:
        connection.send(os.getpid())
        with on_cpu():  # a forked process inherits torch's default device
            while True:
                connection.send(work[connection.recv()])
    except (EOFError, OSError):  # the parent has closed the pipe
        return
