"""Measures time and memory of a training step under several settings, each in its own process.

Activation memory is the peak of a step less what stays between steps: weights, gradients and optimizer.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

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
