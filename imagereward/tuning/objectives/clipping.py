"""The clip of probability ratios in GRPO and AWM; Flow-DPPO's mask; GRPO-Guard's ratios on one scale."""

import torch

from imagereward.tuning.sampling.base import Step, kl_divergence


def clipped_loss(ratio_B, advantages_B, clip: float) -> torch.Tensor:
    """L_b = max(-A_b r_b, -A_b clip(r_b, 1 - clip, 1 + clip)), [B].

    ratio_B       r: probability of the step under the current weights / under the weights that drew it
    advantages_B  A
    clip          above 0; r has no gradient above 1 + clip with A > 0, and below 1 - clip with A < 0

    The negative of Schulman et al. 2017, arXiv:1707.06347, equation 7.
    """
    return torch.maximum(-advantages_B * ratio_B, -advantages_B * ratio_B.clamp(1 - clip, 1 + clip))


def masked_loss(ratio_B, advantages_B, kl_B, bound: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(L [B], dropped [B] bool): L_b = -A_b r_b, and 0 for the samples that are dropped.

    ratio_B       r: probability of the step under the current weights / under the weights that drew it
    advantages_B  A
    kl_B          KL of the current step from the one that was drawn, at least 0
    bound         above 0

    A sample is dropped once its KL is at least the bound and its ratio has moved the way that its advantage
    asks: r > 1 with A > 0, or r < 1 with A < 0. One that has moved the other way keeps its gradient, which
    brings it back. The ratios are not clipped. Ping et al. 2026, arXiv:2606.11025 (Flow-DPPO); its
    bound is 1e-5.
    """
    dropped = (kl_B >= bound) & ((ratio_B - 1) * advantages_B > 0)
    return torch.where(dropped, 0.0, -advantages_B * ratio_B), dropped


def centred_log_ratio(log_ratio_B, step: Step, means) -> torch.Tensor:
    """(log r + KL) * std, [B], with KL = mean over elements of (mean - rollout's mean)^2 / (2 std^2).

    log_ratio_B  log r: log-probability of the step under the current weights - under those that drew it
    step         the step under the current weights, with its mean and std
    means        the rollout's mean [B, C, h, w], under the weights that drew the step

    The expectation of log r over the drawn noise is -KL, so adding the KL centres it at 0. The factor std
    gives all steps the same scale. Wang et al. 2025, arXiv:2510.22319 (GRPO-Guard).
    """
    return (log_ratio_B + kl_divergence(step.mean, means, step.std)) * step.std.flatten()
