"""Processes that watch each other: errors that are told, processes that stand still, and places."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from forked import run_forked

from imagereward.errors import ImageRewardError, InputError
from imagereward.tuning.distributed import gather_objects
from imagereward.tuning.trainer import liveness
from imagereward.tuning.trainer.liveness import watched


def joined():
    """The rank of this process in a new group."""
    torch.distributed.init_process_group("gloo")
    gather_objects(None, 2)
    return torch.distributed.get_rank()


def failing():
    """The first process, in which the store is, ends at once with an error; the second waits for it."""
    rank, liveness.BEAT = joined(), 0.2
    with watched(rank, 2, lambda: "checkpoint-7"):
        if rank == 0:
            raise InputError("no row is left")
        gather_objects(None, 2)


def test_an_error_of_the_first_process_is_quoted_by_the_others(tmp_path):
    ended = run_forked(failing, log=tmp_path / "log", ranks=2)
    assert ended.codes == [1, 1]
    said = Path(f"{tmp_path / 'log'}.1").read_text()
    assert "ProcessLostError: process 0 of 2" in said
    assert "ended with InputError: no row is left; the last checkpoint is checkpoint-7" in said


def standing_still():
    """Both processes are stopped for longer than a process may be silent, and go on one after the other."""
    rank = joined()
    liveness.BEAT, liveness.STALLED, liveness.LIMIT, liveness.GRACE = 0.1, 0.3, 1.5, 0.1
    first, second = gather_objects(os.getpid(), 2)
    with watched(rank, 2, lambda: None):
        time.sleep(0.5)
        if rank == 0:
            stops = f"kill -STOP {first} {second}; sleep 2"
            subprocess.Popen(["sh", "-c", f"{stops}; kill -CONT {first}; sleep 0.5; kill -CONT {second}"])
        time.sleep(1)


def test_a_process_that_stood_still_itself_takes_no_other_for_lost(tmp_path):
    ended = run_forked(standing_still, log=tmp_path / "log", ranks=2)
    assert ended.codes == [0, 0], ended.output


def ports():
    """The ports that this process listens on."""
    own = psutil.Process()
    found = own.net_connections("tcp") if hasattr(own, "net_connections") else own.connections("tcp")
    return {each.laddr.port for each in found if each.status == psutil.CONN_LISTEN}


def watching_twice():
    """Two watches, one after the other."""
    rank, before = joined(), ports()
    for _ in range(2):
        with watched(rank, 2, lambda: None):
            assert ports() <= before
            gather_objects(None, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="asks for another process's ports")
def test_a_watch_opens_no_port(tmp_path):
    ended = run_forked(watching_twice, log=tmp_path / "log", ranks=2)
    assert ended.codes == [0, 0], ended.output


def test_a_launcher_without_a_port_is_refused(monkeypatch):
    monkeypatch.delenv("MASTER_PORT", raising=False)
    monkeypatch.setattr(liveness, "gather_objects", lambda mine, ranks: [mine] * ranks)
    with (
        pytest.raises(ImageRewardError, match="lacks MASTER_ADDR or MASTER_PORT"),
        watched(0, 2, lambda: None),
    ):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_of_another_machine_of_the_same_name_is_not_taken_for_gone(monkeypatch):
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setattr(os, "getpid", lambda: ended.pid)
    here = liveness._place()
    with monkeypatch.context() as other:
        other.setattr(Path, "read_text", lambda path: "another-start\n")
        there = liveness._place()
    assert liveness._is_gone(here)
    assert not liveness._is_gone(there)
