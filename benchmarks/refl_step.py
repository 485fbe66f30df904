"""Time and memory of one ReFL step at Stable Diffusion 1.5's real size: `python benchmarks/refl_step.py`.

512 pixels, one image, the step that carries gradient alone (those before need no activations); ImageReward at
full size; random weights, float32. Writes results/refl-step-*.json.
"""

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks import steps
from benchmarks.full_size import stable_diffusion_15
from imagereward.loading import random_scorer
from imagereward.registry import REGISTRY
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


def prepare(setting: str, device: torch.device):
    """The step under this setting, and what learns by it."""
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

    updates = itertools.count()

    def step() -> None:
        objective.loss(policy, chunks(next(updates), count, count)[0])[0].backward()
        if optimizer:
            optimizer.step()

    return step, learned


def plain(setting: str) -> str:
    """The setting that learns the same and recomputes nothing."""
    return next(
        name for name, (lora, again) in SETTINGS.items() if (lora, again) == (SETTINGS[setting][0], False)
    )


if __name__ == "__main__":
    facts = {"resolution": RESOLUTION, "images": len(PROMPTS)}
    steps.main(__file__, "refl-step", prepare, list(SETTINGS), plain, **facts)
