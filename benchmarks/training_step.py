"""Time and memory of one training step of the full-size reward model, by kind of activation checkpointing.

    python benchmarks/training_step.py [--device cuda] [--steps 3]

ViT-L at 224 pixels, fix_rate 0.7, 4 prompts of 6 images, float32, Adam; random weights, every setting in a
process of its own. Activation memory is the peak of a step less what stays between steps: weights, gradients
and optimizer. Writes results/training-step-*.json.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks import record
from benchmarks.memory import peak, reset_peak, resident
from imagereward.loading import random_scorer
from imagereward.registry import REGISTRY
from imagereward.table import table
from imagereward.tuning.objectives.preference import Preference
from imagereward.tuning.weights import freeze, set_checkpointing

PROMPTS = ["an ocean with clouds and birds", "a red bicycle", "two cats and one dog", "a street in rain"]
IMAGES = 6
FIX_RATE = 0.7
SETTINGS = ("none", "torch", "fairscale", "fairscale-offload")


def measure(setting: str, device: torch.device, steps: int) -> dict:
    """Seconds a step (median) and megabytes, of one setting, in this process."""
    scorer = random_scorer(REGISTRY["ImageReward-v1.0"].config, device)
    freeze(scorer, FIX_RATE)
    set_checkpointing(scorer, setting)
    model = Preference(scorer).train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=1e-5)
    pixels = torch.randint(0, 256, (len(PROMPTS) * IMAGES, 3, 224, 224), dtype=torch.uint8)
    ranks = torch.arange(IMAGES).expand(len(PROMPTS), -1).to(device)

    def step() -> None:
        model(pixels, PROMPTS, ranks)["loss"].backward()
        optimizer.step()

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
        "checkpointing": setting,
        "seconds": median(seconds),
        "peak_mb": peak(device),
        "resting_mb": resting,
        "activations_mb": peak(device) - resting,
        "learning_millions": sum(parameter.numel() for parameter in learning) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--setting", choices=SETTINGS, help="measure one, and print it as JSON")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.setting:
        print(json.dumps(measure(options.setting, device, options.steps)))
        return
    rows = []
    for setting in SETTINGS:
        command = [sys.executable, __file__, "--device", options.device, "--steps", str(options.steps)]
        result = subprocess.run([*command, "--setting", setting], capture_output=True, text=True, check=True)
        rows.append(json.loads(result.stdout.splitlines()[-1]))
        rows[-1]["share"] = rows[-1]["activations_mb"] / rows[0]["activations_mb"]
        print(table(rows[-1:]), flush=True)
    name = f"training-step-{device.type}"
    settings = {"prompts": len(PROMPTS), "images": IMAGES, "fix_rate": FIX_RATE, "rows": rows}
    print(record.write(name, {**settings, "environment": record.environment(device)}))


if __name__ == "__main__":
    main()
