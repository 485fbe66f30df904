"""The same table on Ray Data: the same file. It starts a Ray of its own, which takes most of its time."""

import contextlib
import os
import signal
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_bulk import score
from test_bulk_resume import begun

from imagereward.bulk.output import Output
from imagereward.errors import InputError

pytestmark = pytest.mark.slow  # half a minute, in which Ray's processes start and import torch
ray = pytest.importorskip("ray")


MARK = "IMAGEREWARD_TESTED_BY"


@pytest.fixture(scope="module", autouse=True)
def cluster(ray_alone):
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), MARK: str(os.getpid())}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
    yield
    ray.shutdown()


def assert_same(path, other):
    """Two tables of scores agree: all but the scores exactly, which differ in their last digits.

    Ray gives its workers one thread each, and sums over another number of threads are in another order.
    """
    ours, theirs = pq.read_table(path), pq.read_table(other)
    scores = [name for name in ours.column_names if name.startswith("score:")]
    assert scores
    assert ours.drop_columns(scores).equals(theirs.drop_columns(scores))
    for name in scores:
        assert ours[name].to_pylist() == pytest.approx(theirs[name].to_pylist(), abs=1e-5), name


def test_ray_writes_what_the_local_engine_writes_also_when_a_scorer_is_killed(table, models, monkeypatch):
    (table / "images/5.png").write_bytes(b"junk")
    kinds, options = ("ImageReward", "HPS"), {"part_rows": 1, "keep": ["generator"]}
    score(table, models, *kinds, out="local.parquet", **options)
    write, killed = Output.write, []

    def write_and_kill(self, index, part):
        write(self, index, part)
        if not killed:
            killed.extend(_scorers())
            for process in killed:
                os.kill(process, signal.SIGKILL)

    monkeypatch.setattr(Output, "write", write_and_kill)
    summary, _ = score(table, models, *kinds, engine="ray", actors=1, **options)
    assert killed
    assert summary.failed == 1
    assert_same(table / "out.parquet", table / "local.parquet")


def test_a_local_run_that_stopped_goes_on_on_ray(table, models, monkeypatch):
    score(table, models, out="local.parquet")
    begun(table, models, monkeypatch)
    score(table, models, engine="ray", cache=table / "cache", cache_budget=0.05)
    assert_same(table / "out.parquet", table / "local.parquet")


def test_ray_chooses_devices_itself(table, models):
    with pytest.raises(InputError, match="actors="):
        score(table, models, engine="ray", device=["cpu", "cpu"])


def _scorers() -> list[int]:
    """This Ray's processes that score; others may run on this machine."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = f"{MARK}={os.getpid()}\0".encode() in (process / "environ").read_bytes()
            if ours and b"MapWorker" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found
