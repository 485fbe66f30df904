"""Losses on pairs of images, from the scores of a head: Bradley-Terry, with ties, and with uncertain scores.

Shapes: P pairs. Margins are the better image's score minus the worse one's.
"""

import numpy as np
import torch
import torch.nn.functional as F

# Nodes of the Gauss-Hermite rule: with 48, an expectation of softplus over a normal distribution of standard
# deviation 10 is exact to 1e-3, of standard deviation 3 to 1e-6.
NODES = 48


def bradley_terry(margins_P: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(margin) [P] (Bradley and Terry 1952)."""
    return F.softplus(-margins_P)


def rao_kupper(margins_P: torch.Tensor, tied_P: torch.Tensor, threshold: float) -> torch.Tensor:
    """-log probability [P] with ties (Rao and Kupper 1967).

    P(first better) = sigmoid(margin - threshold), P(second better) = sigmoid(-margin - threshold), and a tie
    has the rest. threshold is above 0; at 0 there are no ties and the loss is `bradley_terry`.

    tied_P  whether people saw no difference
    """
    untied = F.softplus(threshold - margins_P)
    # 1 - sigmoid(m - t) - sigmoid(-m - t) = sigmoid(t - m) sigmoid(t + m) (1 - exp(-2t))
    scale = np.log(-np.expm1(-2 * threshold))
    tie = F.softplus(margins_P - threshold) + F.softplus(-margins_P - threshold) - scale
    return torch.where(tied_P, tie, untied)


def expected_bradley_terry(means_P: torch.Tensor, variances_P: torch.Tensor) -> torch.Tensor:
    """The expectation [P] of -log sigmoid(z), z ~ normal(means, variances): HPSv3's loss (arXiv:2508.03789).

    Its code draws 1000 samples of z. The expectation has no elementary form; here it is a Gauss-Hermite sum,
    which is the same for every call and has no noise.

    means_P      difference of the two means
    variances_P  sum of the two variances, above 0
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    at = torch.as_tensor(nodes, dtype=means_P.dtype, device=means_P.device)
    share = torch.as_tensor(weights / weights.sum(), dtype=means_P.dtype, device=means_P.device)
    z = means_P[:, None] + variances_P.sqrt()[:, None] * at
    return (F.softplus(-z) * share).sum(1)


def thurstone(means_P: torch.Tensor, variances_P: torch.Tensor) -> torch.Tensor:
    """-log P(z > 0) [P] for z ~ normal(means, variances): Thurstone 1927, in closed form."""
    return -torch.special.log_ndtr(means_P / variances_P.sqrt())
