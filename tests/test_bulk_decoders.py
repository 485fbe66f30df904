"""The processes that decode: answers in order, an error within seconds of a death, an end with the parent."""

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from test_bulk import score

from imagereward.bulk.decoding.decoders import Decoders
from imagereward.bulk.decoding.loading import one_ahead
from imagereward.errors import ImageRewardError

SECONDS = 20  # far more than anything here takes on a loaded machine


class Work:
    """Squares numbers; some requests make it wait, or answer with more than a pipe holds."""

    def __getitem__(self, request):
        kind, value = request
        if kind == "wait":
            time.sleep(600)
        if kind == "large":
            return np.full(2**22, value)
        if kind == "exit":
            os._exit(value)
        if kind == "pid":
            return os.getpid()
        return value * value


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_answers_come_in_the_order_of_requests(workers):
    with Decoders(Work(), workers) as decoders:
        assert list(decoders.answers(("square", i) for i in range(50))) == [i * i for i in range(50)]


def test_requests_are_worked_on_only_a_few_ahead():
    taken = []
    with Decoders(Work(), 2) as decoders:
        answers = decoders.answers(taken.append(i) or ("square", i) for i in range(50))
        next(answers)
        assert len(taken) == 5
        answers.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_process_is_an_error_at_once_even_in_the_middle_of_an_answer(seed):
    rng = random.Random(seed)
    with Decoders(Work(), 2) as decoders:
        answers = one_ahead(decoders.answers(("large", i) for i in range(10_000)))
        next(answers)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(rng.choice(decoders.processes).process.pid, signal.SIGKILL)
        with pytest.raises(ImageRewardError, match=r"signal 9 \(SIGKILL\), as Linux .* call goes on"):
            for _ in answers:
                pass
        answers.close()


@pytest.mark.parametrize(("request_", "words"), [(("exit", 3), "exit code 3"), (("exit", 0), "exit code 0")])
def test_a_process_that_ends_by_itself_is_an_error(request_, words):
    with (
        Decoders(Work(), 1) as decoders,
        pytest.raises(ImageRewardError, match=f"decodes images ended with {words}"),
    ):
        list(decoders.answers([("square", 1), request_, ("square", 2)]))


def test_closing_ends_processes_that_are_busy():
    decoders = Decoders(Work(), 2)
    answers = one_ahead(decoders.answers([("square", 1), *[("wait", 0)] * 5]))
    processes = [each.process for each in decoders.processes]
    answers.close()
    decoders.close()
    assert {process.exitcode for process in processes} == {-signal.SIGKILL}  # none ended its wait


PARENT = """
import os, signal, sys, time
sys.path[:0] = {path!r}
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, if the tests were begun by it, ignores it
from test_bulk_decoders import Work
from imagereward.bulk.decoding.decoders import Decoders
import multiprocessing
if __name__ == "__main__":
    multiprocessing.set_start_method({method!r})
    decoders = Decoders(Work(), 2)
    answers = decoders.answers([("pid", 0)] * 20 + [("wait", 0)] * 2)
    print(*{{next(answers) for _ in range(16)}}, flush=True)
    time.sleep(600)
"""


ENDS = [
    ("fork", signal.SIGKILL),
    ("fork", signal.SIGTERM),
    ("fork", signal.SIGHUP),
    ("forkserver", signal.SIGKILL),
]


def test_decoders_end_with_their_parent_however_it_ends(tmp_path):
    parents = []
    for method, _ in ENDS:
        script = tmp_path / f"{method}.py"
        script.write_text(PARENT.format(path=sys.path, method=method))
        parents.append(subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE))
    children = []
    for parent, (_, how) in zip(parents, ENDS):
        pids = parent.stdout.readline().split()
        assert pids
        children += [psutil.Process(int(pid)) for pid in pids]
        parent.send_signal(how)
        parent.wait(SECONDS)
    _, alive = psutil.wait_procs(children, SECONDS)
    for process in alive:
        process.kill()
    assert not alive


RUN = """
import sys
from imagereward.bulk import score_table
if __name__ == "__main__":
    options = {"device": ["cpu", "cpu"], "workers": 1, "part_rows": 1, "batch_size": 4, "progress": False}
    score_table(*sys.argv[1:4], **options)
"""


def test_all_processes_of_a_killed_run_end_and_the_next_run_goes_on(table, models, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    names = [str(table / "table.jsonl"), str(table / "out.parquet"), models["ImageReward"]]
    run = subprocess.Popen([sys.executable, str(script), *names], env=environment)
    parts = table / "out.parquet.parts"
    while run.poll() is None and not list(parts.glob("part-*")):
        time.sleep(0.01)
    family = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(family, SECONDS)
    for process in alive:
        process.kill()
    assert not alive
    assert len(family) >= 3  # two scorers and a decoder, at least
    score(table, models, part_rows=1)
    score(table, models, part_rows=1, out="whole.parquet")
    assert (table / "out.parquet").read_bytes() == (table / "whole.parquet").read_bytes()


def test_a_run_whose_decoder_is_killed_stops_and_goes_on(table, models, monkeypatch):
    score(table, models, out="whole.parquet", part_rows=4)
    answers, killed = Decoders.answers, []

    def kill_one(self, requests):
        for place, answer in enumerate(answers(self, requests)):
            if place == 2 and not killed:
                killed.append(self.processes[0].process.pid)
                os.kill(killed[0], signal.SIGKILL)
            yield answer

    monkeypatch.setattr(Decoders, "answers", kill_one)
    with pytest.raises(ImageRewardError, match="signal 9"):
        score(table, models, part_rows=4, workers=1)
    assert killed
    assert not [each for each in multiprocessing.active_children() if each.name == "imagereward-decode"]
    score(table, models, part_rows=4, workers=1)
    assert (table / "out.parquet").read_bytes() == (table / "whole.parquet").read_bytes()


NO_GUARD = """
import multiprocessing, sys
import torch
from imagereward.bulk import score_table
if multiprocessing.get_start_method(allow_none=True) is None:
    multiprocessing.set_start_method({method!r})
score_table({source!r}, {out!r}, {model!r}, device={device!r}, workers=1, part_rows=8, progress=False)
"""


@pytest.mark.parametrize(
    ("method", "device"), [("spawn", "cpu"), ("forkserver", "cpu"), ("fork", ["cpu", "cpu"])]
)
def test_a_script_without_a_guard_is_told_so(table, models, tmp_path, method, device):
    script = tmp_path / "script.py"
    names = {
        "source": str(table / "table.jsonl"),
        "out": str(table / "o.csv"),
        "model": models["ImageReward"],
    }
    script.write_text(NO_GUARD.format(method=method, device=device, **names))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert result.returncode == 1
    assert "if __name__ == '__main__':" in result.stderr.splitlines()[-1]
    assert "memory" not in result.stderr


def test_a_start_that_the_system_refuses_is_named(monkeypatch):
    def refuse(self):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.Process, "start", refuse)
    with pytest.raises(ImageRewardError, match=r"could not be started .*temporarily unavailable.*workers="):
        Decoders(Work(), 2)


def test_interrupts_reach_the_parent_only():
    with Decoders(Work(), 1) as decoders:
        (pid,) = decoders.answers([("pid", 0)])
        os.kill(pid, signal.SIGINT)
        with contextlib.suppress(StopIteration):
            assert next(decoders.answers([("square", 3)])) == 9
