"""How much of the gradient of SFT on drawn images is the choice of the best, and how much imitation alone.

    python -m benchmarks.training.self_imitation

The tiny flow model draws 8 images for each of 192 training prompts. Two gradients of the loss of
`sft_online` are estimated at its weights: that of all images, which no reward has chosen (imitation), and
that of the best of each 8 minus it (choice). Squared norms are means of products of independent estimates,
from 8 sets of prompts, so that noise does not add to them. Writes results/self-imitation.json.
"""

import argparse
import itertools

import numpy as np
import torch
from tqdm import tqdm

import imagereward as RM
from benchmarks.lib import record
from benchmarks.lib.paths import TINY_FLOW
from benchmarks.training.finetune import REWARD, prompts_of
from imagereward.table import table
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.policy.policy import Policy

SETS, PROMPTS, GROUP, STEPS, BATCH = 8, 24, 8, 12, 48
TIMES = 2  # training times of every image; GROUP times as many of a best one


@torch.no_grad()
def drawn(policy: Policy, prompts: list[str], seed: int) -> torch.Tensor:
    """Clean latents [N, C, h, w] of an image for each of N prompts, by the deterministic sampler."""
    denoiser, dynamics = policy.denoiser, policy.dynamics.without_noise()
    source, parts = torch.Generator().manual_seed(seed), []
    for at in range(0, len(prompts), BATCH):
        condition = Condition(denoiser.text(prompts[at : at + BATCH]))
        x = torch.randn(len(prompts[at : at + BATCH]), *denoiser.autoencoder.shape, generator=source)
        rows = torch.zeros(len(x), dtype=torch.long)
        for step in range(dynamics.steps):
            x = dynamics.step(x, policy.predict(x, rows + step, condition), rows + step).next
        parts.append(x)
    return torch.cat(parts)


def gradient(policy: Policy, latents: torch.Tensor, prompts: list[str], times: int, seed: int):
    """The gradient of the mean loss, all weights in one vector; `times` training times of each image."""
    denoiser, dynamics = policy.denoiser, policy.dynamics
    weights = [each for each in denoiser.module.parameters() if each.requires_grad]
    source, total, parts = torch.Generator().manual_seed(seed), 0.0, 0
    for _, at in itertools.product(range(times), range(0, len(latents), BATCH)):
        clean = latents[at : at + BATCH]
        noise, time = torch.randn(clean.shape, generator=source), dynamics.draw_times(len(clean), source)
        condition = Condition(denoiser.text(prompts[at : at + BATCH]))
        prediction = denoiser.predict(dynamics.add_noise(clean, noise, time), time, condition)
        loss = (prediction - dynamics.target(clean, noise, time)).square().mean()
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        total = total + torch.cat([each.flatten() for each in found if each is not None])
        parts += 1
    return total / parts


def squared_norm(estimates: list[torch.Tensor]) -> tuple[float, float]:
    """(squared norm of the mean of independent estimates, without their noise; its standard error).

    The mean of products of two different estimates; the error is the jackknife's, over estimates.
    """
    vectors = torch.stack(estimates)
    products = (vectors @ vectors.T).double().numpy()

    def mean(kept: list[int]) -> float:
        return float(np.mean([products[a, b] for a, b in itertools.combinations(kept, 2)]))

    count = len(estimates)
    left_out = [mean([each for each in range(count) if each != out]) for out in range(count)]
    return mean(list(range(count))), float(np.sqrt((count - 1) * np.var(left_out)))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    record.add_option(parser)
    record.refuse_changes(parser.parse_args().allow_changes)
    denoiser = open_denoiser(str(TINY_FLOW))
    policy, scorer = Policy(denoiser, denoiser.dynamics(STEPS)), RM.load(REWARD, "cpu")
    prompts, imitation, choice = prompts_of("train", SETS * PROMPTS), [], []
    for place in tqdm(range(SETS), "sets of prompts"):
        of_set = prompts[place * PROMPTS : (place + 1) * PROMPTS]
        texts = [prompt for prompt in of_set for _ in range(GROUP)]
        latents = drawn(policy, texts, 1000 + place)
        with torch.no_grad():
            found = [
                scorer.pixel_rewards(
                    denoiser.autoencoder.decode(latents[at : at + BATCH]), texts[at : at + BATCH]
                )
                for at in range(0, len(texts), BATCH)
            ]
        rewards = torch.cat(found).unflatten(0, (PROMPTS, GROUP))
        best = latents.unflatten(0, (PROMPTS, GROUP))[range(PROMPTS), rewards.argmax(1)]
        denoiser.module.requires_grad_(True)
        of_all = gradient(policy, latents, texts, TIMES, 2 * place)
        of_best = gradient(policy, best, of_set, TIMES * GROUP, 2 * place + 1)
        imitation.append(of_all)
        choice.append(of_best - of_all)
    rows = []
    for name, estimates in (("imitation", imitation), ("choice", choice)):
        square, error = squared_norm(estimates)
        rows.append({"gradient": name, "squared norm": square, "standard error": error})
    print(table(rows))
    result = {"prompts": SETS * PROMPTS, "group": GROUP, "steps": STEPS, "rows": rows}
    print(record.write("self-imitation", {**result, "environment": record.environment(torch.device("cpu"))}))


if __name__ == "__main__":
    main()
