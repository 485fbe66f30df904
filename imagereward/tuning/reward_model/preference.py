"""Preference: the loss on rankings, by which the better image of every pair gets the higher score.

Bradley-Terry over all pairs of a prompt's images, as in Xu et al. 2023 (arXiv:2304.05977), equation 1.
"""

import torch
import torch.nn.functional as F
from torch import nn

from imagereward.scoring.scorer import Scorer

# The rank in a batch's ranks [B, K] where a prompt has fewer than K images.
NO_IMAGE = -100


def ranked_pairs(ranks_B_K: torch.Tensor) -> torch.Tensor:
    """All pairs of a prompt's images with unequal ranks: indices [P, 3] of (prompt, better, worse).

    ranks_B_K  ranks of B prompts' images, lower is better; `NO_IMAGE` is skipped
    """
    there = ranks_B_K != NO_IMAGE
    beats = ranks_B_K[:, :, None] < ranks_B_K[:, None, :]
    return (beats & there[:, :, None] & there[:, None, :]).nonzero()


def preference_loss(scores_B_K: torch.Tensor, ranks_B_K: torch.Tensor) -> torch.Tensor:
    """Mean over all pairs of -log sigmoid(score of the better - score of the worse), a scalar.

    It is log 2 for equal scores, and 0, with a gradient of 0, for a batch without pairs.
    """
    prompt, better, worse = ranked_pairs(ranks_B_K).unbind(1)
    margins = scores_B_K[prompt, better] - scores_B_K[prompt, worse]
    return -F.logsigmoid(margins).sum() / max(1, len(margins))


class Preference(nn.Module):
    """A scorer with the preference loss, as a module that data parallelism can wrap.

    rehearsal  another loss of the same scorer, such as the warm-up's `ImageText`. Its loss on a batch of its
               own is added, so that the scorer does not forget the warm-up. Default: none

    The state dict is the scorer's alone.
    """

    def __init__(self, scorer: Scorer, rehearsal: nn.Module | None = None):
        super().__init__()
        self.scorer, self.rehearsal = scorer, rehearsal

    def forward(
        self, pixels: torch.Tensor, prompts: list[str], ranks: torch.Tensor, rehearsed: dict | None = None
    ) -> dict:
        """{loss, scores [B, K]}, with scores in the places of `ranks`, and 0 where there is no image.

        pixels     [N, 3, S, S], uint8 or float in [0, 1]: the images of all prompts, in order
        prompts    B strings
        ranks      [B, K]: ranks, lower is better, or `NO_IMAGE`
        rehearsed  arguments of `rehearsal`; None: no rehearsal
        """
        pairs_N_2 = image_prompt_pairs(ranks)
        scores = ranks.new_zeros(ranks.shape, dtype=torch.float32)
        scores[ranks != NO_IMAGE] = self.scorer(pixels, prompts, pairs_N_2)
        loss = preference_loss(scores, ranks)
        if rehearsed is not None and self.rehearsal is not None:
            loss = loss + self.rehearsal(**rehearsed)["loss"]
        return {"loss": loss, "scores": scores}

    def state_dict(self, *args, **kwargs):
        return self.scorer.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict, *args, **kwargs):
        return self.scorer.load_state_dict(state_dict, *args, **kwargs)


def image_prompt_pairs(ranks_B_K: torch.Tensor) -> torch.Tensor:
    """Indices [N, 2] of (image, its prompt) for the N images of a batch, in order, on the CPU."""
    prompts_N = (ranks_B_K.cpu() != NO_IMAGE).nonzero()[:, 0]
    return torch.stack([torch.arange(len(prompts_N)), prompts_N], 1)
