"""The local engine of bulk scoring: scores parts in this process, or in one process per device."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from typing import Any

from tqdm import tqdm

from imagereward.bulk.decoding.processes import end_with_parent, guard_hint
from imagereward.bulk.job import BulkJob, shares
from imagereward.bulk.output import Output
from imagereward.errors import DeviceError

# Seconds between updates of the progress bar.
GLANCE = 0.5

# Shared by the scoring processes:
_stop: Any = None  # event: write no further part
_rows: Any = None  # number of rows that all processes have scored


def score_parts(job: BulkJob, output: Output, pending: list[int], devices: Sequence[str], bar: tqdm) -> None:
    """Score the parts with the indices `pending` and write them to `output`.

    Raises DeviceError if one of several scoring processes dies.
    """
    if len(devices) == 1:
        with closing(job.scored(set(pending), devices[0], bar.update)) as parts:
            for index, table in parts:
                output.write(index, table)
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    stop, rows, begun = context.Event(), context.Value("q", 0), context.Value("q", 0)
    with ProcessPoolExecutor(len(devices), context, initializer=_begin, initargs=(stop, rows, begun)) as pool:
        running = {
            pool.submit(_score_share, job, output, share, device)
            for share, device in zip(shares(pending, len(devices)), devices)
        }
        try:
            before = bar.n
            while running:
                finished, running = wait(running, GLANCE, FIRST_EXCEPTION)
                # Without the lock of the value, which a killed process may have held.
                bar.update(before + rows.get_obj().value - bar.n)
                for future in finished:
                    future.result()
        except BrokenProcessPool as error:
            raise DeviceError(_broken(begun.get_obj().value)) from error
        finally:
            stop.set()


def _broken(begun: int) -> str:
    """The message for a scoring process that died; `begun`: number of processes that had started."""
    if not begun:
        return f"the scoring processes ended while they imported the script: {guard_hint('spawn')}"
    return (
        "a scoring process died; is memory short? Finished parts are kept: the same call goes on from there"
    )


def _begin(stop, rows, begun) -> None:
    global _stop, _rows
    _stop, _rows = stop, rows
    end_with_parent()
    with begun.get_lock():
        begun.value += 1


def _advance(rows: int) -> None:
    with _rows.get_lock():
        _rows.value += rows


def _score_share(job: BulkJob, output: Output, share: list[int], device: str) -> None:
    with closing(job.scored(set(share), device, _advance)) as parts:
        for index, table in parts:
            if _stop.is_set():
                return
            output.write(index, table)
