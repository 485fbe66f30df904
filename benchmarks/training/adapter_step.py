"""Benchmark of one training step of each adapter on the full-size reward model: time and memory.

    python -m benchmarks.training.adapter_step [--device cuda] [--steps N]

ImageReward's size, 2 prompts of 4 images, float32, AdamW; random weights. Image features are computed once
before for adapters of the text encoder, as in training, and in every step for "full". Writes
results/adapter-step-*.json.
"""

import torch

from benchmarks.lib import steps
from benchmarks.training.personal import OwnWeights
from imagereward.checkpoints.assembling import random_scorer
from imagereward.checkpoints.registry import REGISTRY
from imagereward.config import ADAPTER_KINDS, AdapterConfig
from imagereward.tuning.reward_model.preference import image_prompt_pairs, preference_loss

PROMPTS = ["an ocean with clouds and birds, oil on canvas", "a red bicycle leaning against a wall"]
IMAGES = 4
SETTINGS = ("full", *ADAPTER_KINDS)


def prepare(setting: str, device: torch.device):
    """The step by this adapter, and what learns by it."""
    scorer = random_scorer(REGISTRY["ImageReward-v1.0"].config, device)
    if setting == "full":
        learned = OwnWeights(scorer, "").learned()
    else:
        learned = scorer.add_adapter(AdapterConfig(setting)).learned()
    for parameter in learned:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(learned, lr=1e-5)
    pixels = torch.randint(0, 256, (len(PROMPTS) * IMAGES, 3, 224, 224), dtype=torch.uint8)
    ranks = torch.arange(IMAGES).expand(len(PROMPTS), -1).to(device)
    with torch.no_grad():
        features = None if setting == "full" else scorer.encode_pixels([pixels])

    def step() -> None:
        found = scorer.encode_pixels([pixels]) if features is None else features
        scores = scorer.head(found, scorer.encode_prompts(PROMPTS), image_prompt_pairs(ranks))
        preference_loss(scores.view_as(ranks), ranks).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, learned


if __name__ == "__main__":
    facts = {"prompts": len(PROMPTS), "images": IMAGES}
    steps.main(
        "benchmarks.training.adapter_step", "adapter-step", prepare, SETTINGS, lambda setting: "full", **facts
    )
