"""Learning from rankings: the better image of every pair should score higher.

Bradley-Terry over all pairs of a prompt's images, as in Xu et al. 2023 (arXiv:2304.05977), equation 1.
"""

import torch
import torch.nn.functional as F
from torch import nn

from imagereward.scoring.scorer import Scorer

# Rank of a place in the batch that holds no image.
NO_IMAGE = -100


def ranked_pairs(ranks_B_K: torch.Tensor) -> torch.Tensor:
    """Every pair of one prompt's images with unequal ranks: [P, 3] of (prompt, better, worse).

    Lower ranks are better; places with `NO_IMAGE` take no part.
    """
    there = ranks_B_K != NO_IMAGE
    beats = ranks_B_K[:, :, None] < ranks_B_K[:, None, :]
    return (beats & there[:, :, None] & there[:, None, :]).nonzero()


def preference_loss(scores_B_K: torch.Tensor, ranks_B_K: torch.Tensor) -> torch.Tensor:
    """Mean over all pairs of -log sigmoid(score of the better - score of the worse); log 2 when equal.

    A batch without a pair gives 0, with a gradient of 0.
    """
    prompt, better, worse = ranked_pairs(ranks_B_K).unbind(1)
    margins = scores_B_K[prompt, better] - scores_B_K[prompt, worse]
    return -F.logsigmoid(margins).sum() / max(1, len(margins))


class Preference(nn.Module):
    """The scorer under this loss, as a module: data parallelism wraps it, and it saves as the scorer does.

    `rehearsal` is another objective of the same scorer, whose loss on a batch of its own is added, so that
    what it taught is not forgotten. Its own weights, if it has any, are kept as they are.
    """

    def __init__(self, scorer: Scorer, rehearsal: nn.Module | None = None):
        super().__init__()
        self.scorer, self.rehearsal = scorer, rehearsal

    def forward(
        self, pixels: torch.Tensor, prompts: list[str], ranks: torch.Tensor, rehearsed: dict | None = None
    ) -> dict:
        """`loss`, and `scores` [B, K] laid out as `ranks` [B, K] is.

        pixels [N, 3, S, S] are the images of all prompts in order, so each is encoded once.
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
    """(image, its prompt) for every image in the batch, in order: [N, 2] on the CPU."""
    prompts_N = (ranks_B_K.cpu() != NO_IMAGE).nonzero()[:, 0]
    return torch.stack([torch.arange(len(prompts_N)), prompts_N], 1)
