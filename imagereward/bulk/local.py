"""The local engine: one process per device."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from typing import Any

from tqdm import tqdm

from imagereward.bulk.job import Job, shares
from imagereward.bulk.output import Output
from imagereward.errors import DeviceError

# Seconds between looks at how far the processes are.
GLANCE = 0.5

_stop: Any = None  # in a device's process: set when it should not begin another part


def score_parts(job: Job, output: Output, pending: list[int], devices: Sequence[str], bar: tqdm) -> None:
    """Score and write the parts `pending`."""
    if len(devices) == 1:
        with closing(job.scored(set(pending), devices[0])) as parts:
            for index, table in parts:
                output.write(index, table)
                bar.update(table.num_rows)
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    stop = context.Event()
    with ProcessPoolExecutor(len(devices), context, initializer=_begin, initargs=(stop,)) as pool:
        running = {
            pool.submit(_score_share, job, output, share, device)
            for share, device in zip(shares(pending, len(devices)), devices)
        }
        try:
            while running:
                finished, running = wait(running, GLANCE, FIRST_EXCEPTION)
                bar.update(job.rows_in(output.done()) - bar.n)
                for future in finished:
                    future.result()
        except BrokenProcessPool as error:
            raise DeviceError("a scoring process died; is memory short? Finished parts are kept") from error
        finally:
            stop.set()


def _begin(stop) -> None:
    global _stop
    _stop = stop


def _score_share(job: Job, output: Output, share: list[int], device: str) -> None:
    parent = multiprocessing.parent_process()
    with closing(job.scored(set(share), device)) as parts:
        for index, table in parts:
            if _stop.is_set() or parent is None or not parent.is_alive():
                return
            output.write(index, table)
