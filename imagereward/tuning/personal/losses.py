"""Losses on scores: of pairs with margins, ratings, labels, and preferences relative to a reference."""

import torch
import torch.nn.functional as F

from imagereward.tuning.reward_model.preference import ranked_pairs


def pairwise_loss(scores_B_K: torch.Tensor, ranks_B_K: torch.Tensor, margins_B: torch.Tensor) -> torch.Tensor:
    """Mean over pairs of -log sigmoid(score of the better - score of the worse - margin); 0 without pairs.

    Bradley-Terry, with a margin as in Touvron et al. 2023 (arXiv:2307.09288), equation 2.
    """
    prompt, better, worse = ranked_pairs(ranks_B_K).unbind(1)
    ahead = scores_B_K[prompt, better] - scores_B_K[prompt, worse] - margins_B[prompt]
    return -F.logsigmoid(ahead).sum() / max(1, len(ahead))


def dpo_loss(
    scores_B_K: torch.Tensor,
    reference_B_K: torch.Tensor,
    ranks_B_K: torch.Tensor,
    margins_B: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Mean over pairs of -log sigmoid(beta (difference of scores - the reference's) - margin); 0 without any.

    Rafailov et al. 2023 (arXiv:2305.18290), equation 7, with scores in place of log-probabilities, and with
    the offset of Amini et al. 2024 (arXiv:2402.10571) as margin. Without margins, it is log 2 at first.
    """
    gained = scores_B_K - reference_B_K
    prompt, better, worse = ranked_pairs(ranks_B_K).unbind(1)
    ahead = beta * (gained[prompt, better] - gained[prompt, worse]) - margins_B[prompt]
    return -F.logsigmoid(ahead).sum() / max(1, len(ahead))


def rating_loss(scores_B: torch.Tensor, targets_B: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of scores and targets."""
    return (scores_B - targets_B).square().mean()


def label_loss(scores_B: torch.Tensor, good_B: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of labels 1 (good) and 0 (bad), with the probability sigmoid(score) of good."""
    return F.binary_cross_entropy_with_logits(scores_B, good_B)
