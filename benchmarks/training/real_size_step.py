"""Benchmark of one step of ReFL and of GRPO at Stable Diffusion 1.5's real size, each beside a plain loop.

    python -m benchmarks.training.real_size_step [--device cuda] [--rounds N]

512 pixels, ImageReward at full size, random weights, float32, AdamW on LoRA; network, decoder and scorer
recompute their activations. The grid has 2 sampling steps. ReFL learns from one image, and the last step
carries gradient; GRPO from a group of 2, and the first step has noise (eta = 1) and is trained. The prompt is
encoded beforehand, as by a text cache. The plain loops (benchmarks/lib/plain_steps.py) compute the same from
the same weights and noise, by diffusers' scheduler and the scorer of benchmarks/lib/plain_loop.py.

Every step runs in a process of its own, ours and the loop in turns; numbers are medians over rounds. Where
the two differ by more than `TOLERANCES`, nothing is written. Of GRPO rewards and gradients are compared,
since its loss before the first update is 0, the mean of the advantages. Outside is what of a step is neither
in U-Net, decoder or scorer, nor in backward passes or the optimizer. Our GRPO scores an image in a thread
while it draws the next, so it may use more cores than torch has threads. Writes
results/real-size-step-*.json.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.lib import plain_steps, record
from benchmarks.lib.full_size import stable_diffusion_15
from benchmarks.lib.memory import peak, reset_peak
from benchmarks.lib.plain_loop import PlainImageReward
from benchmarks.lib.plain_steps import Found, PlainParts
from benchmarks.lib.steps import Clock
from imagereward.checkpoints.assembling import random_scorer
from imagereward.checkpoints.registry import REGISTRY
from imagereward.table import table
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.seeding import noise_for_samples, random_generator
from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.finetune import recompute
from imagereward.tuning.objectives.grpo import GRPO, GRPOConfig
from imagereward.tuning.objectives.refl import Gradient, ReFL, ReFLConfig
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.policy.trainable import LoRA, set_trainable, trainable_parameters
from imagereward.tuning.rewards.weighted import Rewards
from imagereward.tuning.sampling.base import Noise
from imagereward.tuning.trainer.memory import keep_freed_memory

PROMPT = "an ocean with clouds and birds"
RESOLUTION, STEPS, GROUP, TOKENS = 512, 2, 2, 77
WEIGHT, CLIP, LEARNING_RATE = 1e-3, 1e-4, 1e-5
LOOP = ", plain loop"
METHODS = ("ReFL", "GRPO")
NAMES = tuple(method + kind for method in METHODS for kind in ("", LOOP))
# What must agree, and the largest relative difference.
TOLERANCES = {
    "ReFL": {"loss": 1e-3, "gradient_norm": 1e-2},
    "GRPO": {"reward": 1e-3, "gradient_norm": 1e-2},
}
NO_FILES: dict[str, Any] = {"model": "", "output": "", "prompts": ""}


class Prepared(NamedTuple):
    """A step that is ready to run.

    step       a function of the update's index, from 0; the gradients stay until the next step
    learned    the weights that learn, by name
    optimizer  of these weights
    modules    U-Net, decoder, and the towers of the scorer
    """

    step: Callable[[int], Found]
    learned: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    modules: list[torch.nn.Module]


def prepare(name: str, pipeline, scorer, size: int) -> Prepared:
    """The step `name` of `NAMES`, with new adapters in the pipeline's U-Net.

    pipeline  a StableDiffusionPipeline on its device, which may have no tokenizer
    scorer    an ImageReward of any size on the same device
    size      of the images in pixels
    """
    denoiser = open_denoiser(pipeline, size)
    set_trainable(denoiser, LoRA())
    learned = trainable_parameters(denoiser.network)
    optimizer = torch.optim.AdamW(learned.values(), lr=LEARNING_RATE)
    device = denoiser.network.device
    shape = TOKENS, denoiser.network.config.cross_attention_dim
    hidden = torch.randn(1, *shape, generator=random_generator(0, "prompt")).to(device)
    network = [denoiser.network, denoiser.autoencoder.vae.decoder]
    method = name.removesuffix(LOOP)
    if name == method:
        rewards = Rewards({"ImageReward": (1.0, scorer)})
        recompute(denoiser, rewards)
        denoiser.text = lambda prompts: {"encoder_hidden_states": hidden.repeat(len(prompts), 1, 1)}
        towers = [scorer.blip.visual_encoder, scorer.blip.text_encoder]
        return Prepared(_ours(method, denoiser, rewards, optimizer), learned, optimizer, network + towers)
    recompute(denoiser, None)
    plain = PlainImageReward(scorer)
    plain.recompute()
    parts = PlainParts(pipeline, plain, optimizer, hidden, PROMPT, STEPS)
    step = _loop(method, parts, denoiser.autoencoder.shape, device)
    return Prepared(step, learned, optimizer, [*network, plain.visual, plain.text])


def _ours(method: str, denoiser: Denoiser, rewards: Rewards, optimizer) -> Callable[[int], Found]:
    policy = Policy(denoiser, denoiser.dynamics(STEPS))
    objective: Any
    if method == "ReFL":
        at = Gradient(mode="one", first_step=STEPS - 1, last_step=STEPS - 1)
        sizes = {"steps": STEPS, "batch_size": 1, "micro_batch": 1}
        config = ReFLConfig(**NO_FILES, **sizes, gradient=at, target=None, reward_loss_weight=WEIGHT)
        objective = ReFL(config, [PROMPT], rewards)
    else:
        sizes = {"steps": STEPS, "batch_size": GROUP, "micro_batch": 1, "group": GROUP}
        objective = GRPO(
            GRPOConfig(**NO_FILES, **sizes, noise=Noise(kind="ddim", level=1.0), clip_ratio=CLIP),
            [PROMPT],
            rewards,
        )

    def step(update: int) -> Found:
        total, metrics = 0.0, {}
        plan = UpdatePlan(update, objective.config.batch_size, objective.config.micro_batch)
        for minibatches in objective.minibatches(policy, plan):
            optimizer.zero_grad()
            for each in minibatches:
                loss, metrics = objective.loss(policy, each)
                (loss * each.share).backward()
                total += float(loss.detach()) * each.share
            optimizer.step()
        metrics = metrics | objective.end_update(policy, update)
        return Found(total, float(metrics["reward"]))

    return step


def _loop(method: str, parts: PlainParts, shape, device: torch.device) -> Callable[[int], Found]:
    def noise(sample: int, what: str = "noise") -> torch.Tensor:
        return noise_for_samples([sample], shape, 0, what).to(device)

    def refl(update: int) -> Found:
        return plain_steps.refl_step(parts, noise(update), WEIGHT)

    def grpo(update: int) -> Found:
        samples = range(update * GROUP, (update + 1) * GROUP)
        fresh = [noise(sample, "step 0") for sample in samples]
        return plain_steps.grpo_step(parts, [noise(sample) for sample in samples], fresh, CLIP)

    return refl if method == "ReFL" else grpo


def measured(prepared: Prepared, device: torch.device, unmeasured: int = 0) -> dict[str, float]:
    """Seconds, megabytes and numbers of the step after `unmeasured` others."""
    clock = Clock(device, prepared.modules, prepared.optimizer)
    for update in range(unmeasured):
        prepared.step(update)
    found: list[Found] = []
    reset_peak(device)
    seconds, outside = clock.measure(lambda: found.append(prepared.step(unmeasured)))
    gradients = [value.grad for value in prepared.learned.values() if value.grad is not None]
    return {
        "seconds": seconds,
        "peak_mb": peak(device),
        "outside": outside,
        "loss": found[0].loss,
        "reward": found[0].reward,
        "gradient_norm": float(torch.nn.utils.get_total_norm(gradients)),
    }


def compared(method: str, ours: Mapping[str, float], loop: Mapping[str, float]) -> dict[str, float]:
    """The relative differences of what must agree. Raises AssertionError for one beyond `TOLERANCES`."""
    differences = {}
    for name, most in TOLERANCES[method].items():
        differences[name] = abs(ours[name] - loop[name]) / abs(loop[name])
        assert differences[name] <= most, (
            f"{method}: {name} is {ours[name]}, in the plain loop {loop[name]}; they differ by "
            f"{differences[name]:.2g} of it, more than {most:.2g}: one of them computes something else"
        )
    return differences


def rows_of(runs: Mapping[str, list[dict[str, float]]]) -> list[dict]:
    """Medians of every step's rounds; ours beside the loop, with the largest `differences` of any round."""
    rows = []
    for name in NAMES:
        middle = {key: median(run[key] for run in runs[name]) for key in runs[name][0]}
        rows.append({"step": name, **middle, "seconds_of_rounds": [run["seconds"] for run in runs[name]]})
    for method, ours, loop in zip(METHODS, rows[::2], rows[1::2], strict=True):
        each = [compared(method, *pair) for pair in zip(runs[method], runs[method + LOOP], strict=True)]
        ours["of_loop"] = ours["seconds"] / loop["seconds"]
        ours["differences"] = {key: max(one[key] for one in each) for key in TOLERANCES[method]}
    return rows


def run_one(name: str, device: torch.device) -> dict[str, float]:
    """The step in this process, at full size; on a GPU the second one, since the first loads kernels."""
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    pipeline = stable_diffusion_15().to(device)
    scorer = random_scorer(REGISTRY["ImageReward-v1.0"].config, device)
    return measured(prepare(name, pipeline, scorer, RESOLUTION), device, int(device.type == "cuda"))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=1, help="how often each step is measured")
    parser.add_argument("--step", choices=NAMES, help="measure one, once, and print it as JSON")
    record.add_option(parser)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.step:
        print(json.dumps(run_one(options.step, device)))
        return
    record.refuse_changes(options.allow_changes)
    environment = record.environment(device)  # of the code that is measured
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
    command = [sys.executable, "-m", "benchmarks.training.real_size_step", "--device", options.device]
    for _ in range(options.rounds):
        for name in NAMES:
            result = subprocess.run([*command, "--step", name], stdout=subprocess.PIPE, text=True, check=True)
            runs[name].append(json.loads(result.stdout.splitlines()[-1]))
            print(table([{"step": name, **runs[name][-1]}]), flush=True)
    facts = {"resolution": RESOLUTION, "steps": STEPS, "group": GROUP, "rounds": options.rounds}
    found = {**facts, "tolerances": TOLERANCES, "rows": rows_of(runs), "environment": environment}
    print(record.write(f"real-size-step-{device.type}", found))


if __name__ == "__main__":
    main()
