"""Measures time and memory of a training step under several settings, each in its own process.

Activation memory is the peak of a step less what stays between steps: weights, gradients and optimizer.
`Clock` finds how much of a step is spent outside of its modules, its backward passes and its optimizer.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from unittest import mock

import torch

from benchmarks.lib import record
from benchmarks.lib.memory import peak, reset_peak, resident
from imagereward.table import table

# Of (setting, device), what is to be repeated, and what learns by it.
Prepare = Callable[[str, torch.device], tuple[Callable[[], None], list[torch.Tensor]]]


def main(
    benchmark: str, name: str, prepare: Prepare, settings: Sequence[str], plain: Callable[[str], str], **facts
) -> None:
    """The command of the module `benchmark`: measures all settings and writes results/NAME-*.json.

    `plain` says against which setting's activations a setting's are held.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--setting", choices=settings, help="measure one, and print it as JSON")
    record.add_option(parser)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.setting:
        step, learned = prepare(options.setting, device)
        print(json.dumps({"setting": options.setting, **measured(step, learned, device, options.steps)}))
        return
    record.refuse_changes(options.allow_changes)
    rows: dict[str, dict] = {}
    for setting in settings:
        command = [sys.executable, "-m", benchmark, "--device", options.device, "--steps", str(options.steps)]
        result = subprocess.run(
            [*command, "--setting", setting], stdout=subprocess.PIPE, text=True, check=True
        )
        row = rows[setting] = json.loads(result.stdout.splitlines()[-1])
        row["share"] = row["activations_mb"] / rows[plain(setting)]["activations_mb"]
        print(table([row]), flush=True)
    found = {**facts, "rows": list(rows.values()), "environment": record.environment(device)}
    print(record.write(f"{name}-{device.type}", found))


def measured(step: Callable[[], None], learned: list[torch.Tensor], device: torch.device, steps: int) -> dict:
    """Median seconds of a step, and megabytes; `learned` are the optimizer's parameters."""
    step()  # gradients and the optimizer's state exist from here on
    resting, seconds = resident(device), []
    reset_peak(device)
    for _ in range(steps):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": median(seconds),
        "peak_mb": peak(device),
        "resting_mb": resting,
        "activations_mb": peak(device) - resting,
        "learning_millions": sum(value.numel() for value in learned) / 1e6,
    }


class Clock:
    """Times a step, and what of it is inside watched modules, backward passes and the optimizer's steps.

    Intervals are counted by their union: a module that a backward pass runs again, or that runs in a thread
    beside another, counts once.

    modules    their forward passes are inside
    optimizer  its steps are inside
    """

    def __init__(
        self, device: torch.device, modules: Sequence[torch.nn.Module], optimizer: torch.optim.Optimizer
    ):
        self.device, self.begun, self.intervals = device, {}, []
        for module in modules:
            module.register_forward_pre_hook(self._begin)
            module.register_forward_hook(self._end)
        optimizer.register_step_pre_hook(self._begin)
        optimizer.register_step_post_hook(self._end)

    def measure(self, step: Callable[[], object]) -> tuple[float, float]:
        """(seconds of the step, the share of them outside, 0..1)."""
        self.begun, self.intervals = {}, []
        with self._watching_backward():
            start = self._now()
            step()
            end = self._now()
        return end - start, 1 - union(self.intervals) / (end - start)

    @contextlib.contextmanager
    def _watching_backward(self) -> Iterator[None]:
        backward = torch.Tensor.backward

        def watched(tensor, *args, **kwargs):
            self._begin(backward)
            backward(tensor, *args, **kwargs)
            self._end(backward)

        with mock.patch.object(torch.Tensor, "backward", watched):
            yield

    def _begin(self, what, *_) -> None:
        self.begun[what] = self._now()

    def _end(self, what, *_) -> None:
        self.intervals.append((self.begun.pop(what), self._now()))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def union(intervals: Sequence[tuple[float, float]]) -> float:
    """The length of the union of intervals (begin, end)."""
    length, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        length += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return length
