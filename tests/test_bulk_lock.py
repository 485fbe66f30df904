"""The lock of an output: one writer at a time, of threads and of processes, and no file overwritten by it."""

import os
import subprocess
import sys
import threading

import pytest
from test_bulk import score
from test_bulk_changes import link

from imagereward.bulk.lock import held
from imagereward.errors import OutputError


def test_threads_of_one_process_do_not_write_one_output(table, models):
    lock, results = table / "out.parquet.lock", []

    def second():
        with pytest.raises(OutputError, match="being written by another thread") as caught:
            score(table, models, "CLIP")
        results.append(caught)

    with held(lock, table / "out.parquet"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(results) == 1
    score(table, models)
    assert not lock.exists()


HOLD_AND_CLOSE = """
import sys
from pathlib import Path
from imagereward.bulk.lock import held
with held(Path(sys.argv[1]), Path("it")):
    open(sys.argv[1]).close()  # lets go of a record lock
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_survives_the_closing_of_another_descriptor_of_its_file(table, models, monkeypatch):
    lock = table / "out.parquet.lock"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLD_AND_CLOSE, str(lock)]
    monkeypatch.setattr("imagereward.bulk.lock.PATIENCE", 0.1)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match=f"being written by process {other.pid} on"):
            score(table, models)
        other.stdin.close()


@pytest.mark.parametrize("kind", ["symlink", "dangling", "hard link", "other"])
def test_a_lock_file_that_is_none_overwrites_nothing(table, models, kind):
    precious, lock = table / "precious.txt", table / "out.parquet.lock"
    precious.write_text("precious")
    if kind == "dangling":
        lock.symlink_to(table / "none.txt")
    elif kind == "other":
        lock.write_text("precious")
    else:
        link(kind, lock, precious)
    with pytest.raises(OutputError, match=r"out\.parquet\.lock (is a symbolic link|holds something else)"):
        score(table, models)
    assert precious.read_text() == "precious"
    assert not (table / "none.txt").exists()
    assert os.path.lexists(lock)
