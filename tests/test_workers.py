"""A whole suite runs in two workers where cores and memory allow two; single files run in none."""

import subprocess
import sys
from pathlib import Path

import pytest
from workers import SLOW, THREADS, workers_for

TESTS = Path(__file__).parent
GIB = 2**30


@pytest.mark.parametrize(
    ("arguments", "cores", "memory", "expected"),
    [
        ([str(TESTS)], 2, 16 * GIB, 2),
        ([str(TESTS)], 64, 512 * GIB, 2),
        ([str(TESTS)], 1, 16 * GIB, 0),
        ([str(TESTS)], 2, 8 * GIB, 0),
        ([str(TESTS)], 2, 0.0, 0),
        ([__file__], 2, 16 * GIB, 0),
        ([f"{__file__}::test_every_slow_file_exists"], 2, 16 * GIB, 0),
        ([str(TESTS), __file__], 2, 16 * GIB, 0),
        ([], 2, 16 * GIB, 0),
    ],
)
def test_only_runs_of_directories_on_machines_that_are_large_enough_take_workers(
    arguments, cores, memory, expected
):
    assert workers_for(arguments, cores, memory) == expected


def test_every_slow_file_exists():
    assert len(set(SLOW)) == len(SLOW)
    assert [name for name in SLOW if not (TESTS / name).is_file()] == []


CONFTEST = """
import workers
from workers import pytest_cmdline_main, pytest_collection_modifyitems

workers.cores, workers.memory = lambda: 2, lambda: 16e9
workers.SLOW = ("test_z.py",)
"""
TEST = """
import os

def test_it(request):
    worker = getattr(request.config, "workerinput", {}).get("workerid", "none")
    with open("seen", "a") as file:
        file.write(f"{os.path.basename(__file__)} {worker} {os.environ.get('OMP_NUM_THREADS')}\\n")
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"test_a.py gw 1", "test_b.py gw 1", "test_z.py gw 1"}),
        (["test_a.py"], {"test_a.py none None"}),
        (["-n", "0"], {"test_a.py none None", "test_b.py none None", "test_z.py none None"}),
    ],
)
def test_a_suite_is_shared_by_two_workers_with_one_thread_each(arguments, expected, tmp_path, monkeypatch):
    for name in (*THREADS, "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = .\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name in ("a", "b", "z"):
        (tmp_path / f"test_{name}.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = (tmp_path / "seen").read_text().splitlines()
    assert {line.replace("gw0", "gw").replace("gw1", "gw") for line in lines} == expected
    if not arguments:
        worker_of = dict(line.split()[:2] for line in lines)
        assert len(set(worker_of.values())) == 2
        of_one = [line.split()[0] for line in lines if line.split()[1] == worker_of["test_z.py"]]
        assert of_one[0] == "test_z.py"
