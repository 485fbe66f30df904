"""Runs a function in new processes that begin with torch, diffusers and the tests' pipelines imported.

An interpreter that imports them takes ten seconds of CPU time. Here one process imports them, once for all
tests of a pytest process, and never computes: what is forked from it has no threads to miss.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
IMPORTED = ["test_refl", "test_grpo"]  # and what they import


class Ended(NamedTuple):
    """The end of the processes: their exit codes by rank, negative for a signal, and what they printed."""

    codes: list[int]
    output: str


def run_forked(
    function: Callable, *arguments, log: Path, ranks: int = 1, environment: Mapping[str, str] | None = None
) -> Ended:
    """Call `function(*arguments)`, a function of a module, in `ranks` new processes, and wait for their end.

    log          the processes' standard output and error go to log.0, log.1, …
    ranks        with 2 or more, the processes find each other as those of torchrun do
    environment  further variables
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    # The forking process finds its modules by PYTHONPATH; it ignores what else it is told (Python 3.11).
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])
    try:
        variables = {"CUDA_VISIBLE_DEVICES": "", **(environment or {})}
        if ranks > 1:
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        processes = []
        for rank in range(ranks):
            of_rank = _of_rank(rank, ranks) if ranks > 1 else {}
            values = (function, arguments, variables | of_rank, f"{log}.{rank}")
            processes.append(context.Process(target=_run, args=values))
            processes[-1].start()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    for process in processes:
        process.join()
    printed = "".join(Path(f"{log}.{rank}").read_text() for rank in range(ranks))
    return Ended([process.exitcode for process in processes], printed)


def _of_rank(rank: int, ranks: int) -> dict[str, str]:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return {name: str(value) for name, value in names.items()}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _run(function: Callable, arguments: tuple, variables: dict[str, str], log: str) -> None:
    import torch

    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for each in (1, 2):
        os.dup2(stream, each)
    torch.set_num_threads(1)
    os.environ.update(variables)
    function(*arguments)
