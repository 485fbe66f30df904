"""Hooks of pytest that run a whole suite in two pytest-xdist workers, the slowest files first.

`conftest.py` imports them. A run of directories (a plain `python -m pytest`) takes two workers where the
machine has two cores and 15 GB. A run of single files or tests takes none, and neither does one with `--pdb`,
`--collect-only` or without pytest-xdist. `-n` has its usual meaning: `-n 0` runs everything in one process.
"""

import os
from pathlib import Path

import pytest

MOST_WORKERS = 2
WORKER_BYTES = 7.5e9  # a worker and the processes that its tests start, at most
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

# The slowest files, the longest first. A worker takes the next file when it has finished one: the last files
# are then short, and both workers end at about the same time.
SLOW = (
    "test_parity.py",
    "test_sharding.py",
    "test_families_learn.py",
    "test_tiny_generators.py",
    "test_recipe.py",
    "test_bulk_ray.py",
    "test_bulk_decoders.py",
    "test_sharding_docs.py",
    "test_notebooks.py",
    "test_launch.py",
    "test_judge_resume.py",
    "test_tuning.py",
    "test_tiny.py",
    "test_refl.py",
    "test_serve_ray.py",
    "test_docs.py",
    "test_serve.py",
    "test_inpainting_data.py",
    "test_personal_docs.py",
    "test_processes.py",
    "test_personal.py",
    "test_tiny_vlm.py",
    "test_cards.py",
    "test_package.py",
    "test_bulk.py",
    "test_bulk_resume.py",
    "test_serve_memory.py",
    "test_compare.py",
)


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> float:
    """Bytes of memory that this machine, or this container, has."""
    try:
        found = float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # Windows
        return 0.0
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return found if text == "max" else min(found, float(text))


def workers_for(arguments: list[str], cores: int, memory: float) -> int:
    """How many workers a run of these paths takes; 0 to run in this process."""
    if not arguments or not all(Path(argument).is_dir() for argument in arguments):
        return 0
    count = min(MOST_WORKERS, cores, int(memory / WORKER_BYTES))
    return count if count > 1 else 0


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Choose the workers before pytest-xdist reads its options."""
    option = config.option
    if "PYTEST_XDIST_WORKER" in os.environ:  # a worker, or a pytest that a test in a worker started
        return
    if getattr(option, "numprocesses", 0) is not None or option.usepdb or option.collectonly:
        return
    if count := workers_for(config.args, cores(), memory()):
        option.numprocesses, option.dist, option.loadscopereorder = count, "loadfile", False
        for name in THREADS:  # workers inherit them before they import torch
            os.environ.setdefault(name, str(cores() // count))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a worker, put the files of `SLOW` first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))
