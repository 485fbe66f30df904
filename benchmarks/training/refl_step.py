"""Benchmark of one ReFL step at Stable Diffusion 1.5's real size: time and memory.

    python -m benchmarks.training.refl_step

512 pixels, one image, the step that carries gradient alone (those before need no activations); ImageReward at
full size; random weights, float32. Writes results/refl-step-*.json.
"""

import itertools

import torch

from benchmarks.lib import steps
from benchmarks.lib.full_size import stable_diffusion_15
from imagereward.checkpoints.assembling import random_scorer
from imagereward.checkpoints.registry import REGISTRY
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.finetune import recompute
from imagereward.tuning.objectives.refl import Gradient, ReFL, ReFLConfig
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.policy.trainable import LoRA, set_trainable, trainable_parameters
from imagereward.tuning.rewards.weighted import Rewards

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
    set_trainable(denoiser, lora)
    scorer = random_scorer(REGISTRY["ImageReward-v1.0"].config, device)
    rewards = Rewards({"ImageReward": (1.0, scorer)})
    if checkpointing:
        recompute(denoiser, rewards)
    policy = Policy(denoiser, denoiser.dynamics(1))
    count = len(PROMPTS)
    gradient = Gradient(mode="one", first_step=0, last_step=0)
    config = ReFLConfig(
        model="", output="", prompts="", gradient=gradient, batch_size=count, micro_batch=count, target=None
    )
    objective = ReFL(config, PROMPTS, rewards)
    learned = list(trainable_parameters(denoiser.network).values())
    optimizer = torch.optim.AdamW(learned, lr=1e-5) if lora else None

    updates = itertools.count()

    def step() -> None:
        objective.loss(policy, UpdatePlan(next(updates), count, count).mine[0])[0].backward()
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
    steps.main("benchmarks.training.refl_step", "refl-step", prepare, list(SETTINGS), plain, **facts)
