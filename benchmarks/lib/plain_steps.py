"""A step of ReFL and one of GRPO as plain loops over diffusers' parts: for comparing speed, memory, numbers.

After the arithmetic of the published scripts: ReFL, Xu et al. 2023, arXiv:2304.05977; DDIM with noise and its
log-probabilities, Black et al. 2023, arXiv:2305.13301; groups and the clipped loss, Liu et al. 2025,
arXiv:2505.05470. Every image goes alone, and nothing here comes from imagereward. What is trained, and what
recomputes its activations, the caller has set up.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler

from benchmarks.lib.plain_loop import PlainImageReward

ADVANTAGE_EPSILON, ADVANTAGE_CLIP = 1e-4, 5.0


class PlainParts(NamedTuple):
    """What both loops run.

    pipeline   a StableDiffusionPipeline; its U-Net learns
    scorer     scores its images
    optimizer  of the weights that learn
    hidden     the encoded prompt [1, T, D]
    prompt     the same in words, which the scorer reads
    steps      of the sampling grid
    """

    pipeline: Any
    scorer: PlainImageReward
    optimizer: torch.optim.Optimizer
    hidden: torch.Tensor
    prompt: str
    steps: int


class Found(NamedTuple):
    """The loss of a step, and the mean reward of its images."""

    loss: float
    reward: float


def refl_step(parts: PlainParts, noise: torch.Tensor, weight: float) -> Found:
    """One step of ReFL on one image, whose last sampling step carries gradient; gradients are left in place.

    noise   the latents [1, C, h, w] at the start of sampling
    weight  L = -weight * reward of the clean image that the last step predicts
    """
    scheduler = _scheduler(parts)
    parts.optimizer.zero_grad()
    x = noise
    with torch.no_grad():
        for t in scheduler.timesteps[:-1]:
            x = scheduler.step(_predict(parts, x, t), t, x).prev_sample
    t = scheduler.timesteps[-1]
    clean = scheduler.step(_predict(parts, x, t), t, x).pred_original_sample
    with parts.scorer.unfused():
        reward = parts.scorer.rewards(_decode(parts, clean), parts.prompt).mean()
        loss = -weight * reward
        loss.backward()
    parts.optimizer.step()
    return Found(loss.item(), reward.item())


def grpo_step(
    parts: PlainParts, starts: Sequence[torch.Tensor], fresh: Sequence[torch.Tensor], clip: float
) -> Found:
    """One step of GRPO on a group of images; the first sampling step has noise (eta = 1) and is trained.

    starts  each image's latents [1, C, h, w] at the start of sampling
    fresh   each image's noise [1, C, h, w] of the first step
    clip    largest distance of a probability ratio from 1 that still has a gradient

    Gradients are left in place.
    """
    scheduler = _scheduler(parts)
    first, rest = scheduler.timesteps[0], scheduler.timesteps[1:]
    drawn, rewards = [], []
    with torch.no_grad(), parts.scorer.unfused():
        for start, noise in zip(starts, fresh, strict=True):
            mean, std = _noisy(scheduler, _predict(parts, start, first), first, start)
            after = mean + std * noise
            drawn.append((start, after, _log_probability(after, mean, std)))
            x = after
            for t in rest:
                x = scheduler.step(_predict(parts, x, t), t, x).prev_sample
            rewards.append(parts.scorer.rewards(_decode(parts, x), parts.prompt))
        rewards_G = torch.cat(rewards)
        worth = (rewards_G - rewards_G.mean()) / (rewards_G.std(correction=0) + ADVANTAGE_EPSILON)
        worth = worth.clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)
    parts.optimizer.zero_grad()
    total = 0.0
    for (start, after, before), advantage in zip(drawn, worth, strict=True):
        mean, std = _noisy(scheduler, _predict(parts, start, first), first, start)
        ratio = (_log_probability(after, mean, std) - before).exp()
        clipped = ratio.clamp(1 - clip, 1 + clip)
        loss = torch.maximum(-advantage * ratio, -advantage * clipped).mean() / len(drawn)
        loss.backward()
        total += loss.item()
    parts.optimizer.step()
    return Found(total, rewards_G.mean().item())


def _scheduler(parts: PlainParts) -> DDIMScheduler:
    scheduler = DDIMScheduler.from_config(parts.pipeline.scheduler.config)
    scheduler.set_timesteps(parts.steps)
    return scheduler


def _predict(parts: PlainParts, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return parts.pipeline.unet(x, t, parts.hidden).sample


def _decode(parts: PlainParts, latents: torch.Tensor) -> torch.Tensor:
    """The image [1, 3, H, W] in [0, 1]."""
    vae = parts.pipeline.vae
    return (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


def _noisy(scheduler: DDIMScheduler, prediction, t, x) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [1, C, h, w] and standard deviation, a number, of a DDIM step with eta = 1."""
    mean = scheduler.step(prediction, t, x, eta=1.0, variance_noise=torch.zeros_like(x)).prev_sample
    before = scheduler.alphas_cumprod[t]
    to = int(t) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    after = scheduler.alphas_cumprod[to] if to >= 0 else scheduler.final_alpha_cumprod
    return mean, ((1 - after) / (1 - before) * (1 - before / after)).sqrt()


def _log_probability(x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """log N(x; mean, std^2) [1], averaged over elements."""
    density = -((x - mean) ** 2) / (2 * std**2) - std.log() - math.log(math.sqrt(2 * math.pi))
    return density.mean(dim=(1, 2, 3))
