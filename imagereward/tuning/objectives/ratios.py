"""GRPO's clipped loss, and the probability ratios that it clips, centred and on one scale at all steps."""

import torch

from imagereward.tuning.sampling.base import Step, kl_divergence


def clipped_loss(ratio_B, advantages_B, clip: float) -> torch.Tensor:
    """max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) [B].

    Schulman et al. 2017, arXiv:1707.06347, equation 7, with its sign turned.
    """
    return torch.maximum(-advantages_B * ratio_B, -advantages_B * ratio_B.clamp(1 - clip, 1 + clip))


def centred_log_ratio(log_ratio_B, step: Step, means) -> torch.Tensor:
    """log rho [B] made as large at every step, and as often positive as negative.

    (dlogp + mean |mean - rollout's mean|^2 / (2 std^2)) std (Wang et al. 2025, arXiv:2510.22319). What is
    added cancels that any move of the mean makes what was drawn less likely.
    """
    return (log_ratio_B + kl_divergence(step.mean, means, step.std)) * step.std.flatten()
