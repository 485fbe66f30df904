"""Benchmark of one training step of the full-size reward model: time and memory by activation checkpointing.

    python -m benchmarks.training.training_step [--device cuda] [--steps N]

ViT-L at 224 pixels, fix_rate 0.7, 4 prompts of 6 images, float32, Adam; random weights. Writes
results/training-step-*.json.
"""

import torch

from benchmarks.lib import steps
from imagereward.checkpoints.assembling import random_scorer
from imagereward.checkpoints.registry import REGISTRY
from imagereward.tuning.reward_model.init import freeze, set_checkpointing
from imagereward.tuning.reward_model.preference import Preference

PROMPTS = ["an ocean with clouds and birds", "a red bicycle", "two cats and one dog", "a street in rain"]
IMAGES = 6
FIX_RATE = 0.7
SETTINGS = ("none", "torch", "fairscale", "fairscale-offload")


def prepare(setting: str, device: torch.device):
    """The step under this kind of checkpointing, and what learns by it."""
    scorer = random_scorer(REGISTRY["ImageReward-v1.0"].config, device)
    freeze(scorer, FIX_RATE)
    set_checkpointing(scorer, setting)
    model = Preference(scorer).train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=1e-5)
    pixels = torch.randint(0, 256, (len(PROMPTS) * IMAGES, 3, 224, 224), dtype=torch.uint8)
    ranks = torch.arange(IMAGES).expand(len(PROMPTS), -1).to(device)

    def step() -> None:
        model(pixels, PROMPTS, ranks)["loss"].backward()
        optimizer.step()

    return step, learned


if __name__ == "__main__":
    facts = {"prompts": len(PROMPTS), "images": IMAGES, "fix_rate": FIX_RATE}
    steps.main(
        "benchmarks.training.training_step",
        "training-step",
        prepare,
        SETTINGS,
        lambda setting: "none",
        **facts,
    )
