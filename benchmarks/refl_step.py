"""Time and memory of one ReFL step at Stable Diffusion 1.5's real size: `python benchmarks/refl_step.py`.

512 pixels, one image, the step that carries gradient alone (those before need no activations); ImageReward at
full size; random weights, float32, every setting in a process of its own. Activation memory is the peak of a
step less what stays between steps. Writes results/refl-step-*.json.
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
from benchmarks.full_size import stable_diffusion_15
from benchmarks.memory import peak, reset_peak, resident
from imagereward.loading import random_scorer
from imagereward.registry import REGISTRY
from imagereward.table import table
from imagereward.tuning.adapt import LoRA, learning, let_learn
from imagereward.tuning.batches import chunks
from imagereward.tuning.denoisers import Condition, open_denoiser
from imagereward.tuning.generator import recompute
from imagereward.tuning.objectives.refl import Gradient, ReFL
from imagereward.tuning.policy import Policy
from imagereward.tuning.rewards import Rewards

PROMPTS = ["an ocean with clouds and birds"]
RESOLUTION = 512
# (what learns, activations recomputed). Full weights go without an optimizer: its state is not an activation.
SETTINGS = {
    "LoRA, plain": (LoRA(), False),
    "LoRA, checkpointing": (LoRA(), True),
    "full, plain": (None, False),
    "full, checkpointing": (None, True),
}


def measure(setting: str, device: torch.device, steps: int) -> dict:
    """Seconds a step (median) and megabytes, of one setting, in this process."""
    lora, checkpointing = SETTINGS[setting]
    with device:
        denoiser = open_denoiser(stable_diffusion_15(), RESOLUTION)
    hidden = torch.randn(len(PROMPTS), 77, 768, device=device)
    denoiser.encode = lambda prompts: Condition({"encoder_hidden_states": hidden})
    let_learn(denoiser, lora)
    scorer = random_scorer(REGISTRY["ImageReward-v1.0"].config, device)
    rewards = Rewards({"ImageReward": (1.0, scorer)})
    if checkpointing:
        recompute(denoiser, rewards)
    policy = Policy(denoiser, denoiser.dynamics(1))
    count = len(PROMPTS)
    gradient = Gradient(steps="one", first=0, last=0)
    objective = ReFL(PROMPTS, rewards, gradient, batch_size=count, micro_batch=count, target=None)
    learned = list(learning(denoiser.network).values())
    optimizer = torch.optim.AdamW(learned, lr=1e-5) if lora else None

    def step(update: int) -> None:
        objective.loss(policy, chunks(update, count, count)[0])[0].backward()
        if optimizer:
            optimizer.step()

    step(0)  # gradients and the optimizer's state exist from here on
    resting, seconds = resident(device), []
    reset_peak(device)
    for update in range(1, steps + 1):
        start = time.perf_counter()
        step(update)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {
        "setting": setting,
        "seconds": median(seconds),
        "peak_mb": peak(device),
        "resting_mb": resting,
        "activations_mb": peak(device) - resting,
        "learning_millions": sum(value.numel() for value in learned) / 1e6,
        "optimizer_mb": sum(value.numel() for value in learned) * 8 / 2**20,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=1)
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
        plain = rows[-1] if "plain" in setting else rows[-2]
        rows[-1]["share"] = rows[-1]["activations_mb"] / plain["activations_mb"]
        print(table(rows[-1:]), flush=True)
    found = {"resolution": RESOLUTION, "images": len(PROMPTS), "rows": rows}
    print(record.write(f"refl-step-{device.type}", {**found, "environment": record.environment(device)}))


if __name__ == "__main__":
    main()
