"""GRPO's clipped loss, and GRPO-Guard's probability ratios, centred and on one scale at all steps."""

import torch

from imagereward.tuning.sampling.base import Step, kl_divergence


def clipped_loss(ratio_B, advantages_B, clip: float) -> torch.Tensor:
    """L_b = max(-A_b r_b, -A_b clip(r_b, 1 - clip, 1 + clip)), [B].

    ratio_B       r: probability of the step under the current weights / under the weights that drew it
    advantages_B  A
    clip          largest distance of r from 1 that still has a gradient, above 0

    The negative of Schulman et al. 2017, arXiv:1707.06347, equation 7.
    """
    return torch.maximum(-advantages_B * ratio_B, -advantages_B * ratio_B.clamp(1 - clip, 1 + clip))


def centred_log_ratio(log_ratio_B, step: Step, means) -> torch.Tensor:
    """(log r + KL) * std, [B], with KL = mean over elements of (mean - rollout's mean)^2 / (2 std^2).

    log_ratio_B  log r: log-probability of the step under the current weights - under those that drew it
    step         the step under the current weights, with its mean and std
    means        the rollout's mean [B, C, h, w], under the weights that drew the step

    The expectation of log r over the drawn noise is -KL, so adding the KL centres it at 0. The factor std
    gives all steps the same scale. Wang et al. 2025, arXiv:2510.22319 (GRPO-Guard).
    """
    return (log_ratio_B + kl_divergence(step.mean, means, step.std)) * step.std.flatten()
