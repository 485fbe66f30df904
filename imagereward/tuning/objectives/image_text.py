"""Learning what images show from (prompt, image) pairs, before anyone ranks them.

Two of BLIP's three pretraining losses (Li et al. 2022, arXiv:2201.12086, section 3.2): contrast between
the towers, and matching through the text encoder that looks at the image. From random weights, rankings
alone teach quality but hardly what a prompt means.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from imagereward.models.blip import BLIPBase


def contrastive_loss(similarity_B_B: torch.Tensor, same_B_B: torch.Tensor) -> torch.Tensor:
    """Cross-entropy both ways between images (rows) and prompts (columns).

    `same` is true where image i and prompt j say the same; such pairs share the target.
    """
    target = same_B_B / same_B_B.sum(1, keepdim=True)
    both = (F.cross_entropy(logits, target) for logits in (similarity_B_B, similarity_B_B.T))
    return sum(both, torch.zeros((), device=similarity_B_B.device)) / 2


def hard_negatives(similarity_B_B: torch.Tensor, same_B_B: torch.Tensor) -> torch.Tensor:
    """For every row a column that is not the same, drawn in proportion to exp(similarity).

    A row that equals all columns gets one of those.
    """
    weights = similarity_B_B.detach().softmax(1) + 1e-6
    alone = same_B_B.all(1, keepdim=True)
    return torch.multinomial(weights.masked_fill(same_B_B & ~alone, 0), 1)[:, 0]


class ImageText(nn.Module):
    """A BLIP under contrastive and matching loss, with the temperature and the matching head they need."""

    def __init__(self, scorer: BLIPBase):
        super().__init__()
        self.scorer = scorer
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.match = nn.Linear(scorer.blip.shape.text.width, 1)

    def forward(self, pixels: torch.Tensor, prompts: list[str]) -> dict:
        """`loss`, and both parts of it: pixels [B, 3, S, S], image i shows what prompt i says."""
        blip = self.scorer.blip
        tokens_B_N_W = self.scorer.encode_pixels([pixels])
        ids, mask = (part.to(pixels.device) for part in self._tokenised(prompts))
        alone = blip.text_encoder(ids, mask, first_only=True)[:, 0]
        images = F.normalize(blip.vision_proj(tokens_B_N_W[:, 0]).float(), dim=-1)
        texts = F.normalize(blip.text_proj(alone).float(), dim=-1)
        similarity = self.log_scale.exp().clamp(max=100) * images @ texts.T
        numbers = torch.tensor([prompts.index(prompt) for prompt in prompts], device=pixels.device)
        same = numbers[:, None] == numbers
        contrast = contrastive_loss(similarity, same)
        match = self._matching(ids, mask, tokens_B_N_W, similarity, same)
        return {"loss": contrast + match, "contrast": contrast.detach(), "match": match.detach()}

    def _matching(self, ids, mask, tokens_B_N_W, similarity, same) -> torch.Tensor:
        """Is this the prompt of this image? Asked of every pair, and of each side with a hard negative."""
        rows = torch.arange(len(ids), device=ids.device)
        prompt = torch.cat([rows, hard_negatives(similarity, same), rows])
        image = torch.cat([rows, rows, hard_negatives(similarity.T, same)])
        read = self.scorer.blip.text_encoder(ids[prompt], mask[prompt], tokens_B_N_W, image, first_only=True)
        return F.binary_cross_entropy_with_logits(
            self.match(read[:, 0]).float()[:, 0], same[image, prompt].float()
        )

    def _tokenised(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scorer.blip.wordpiece.encode(prompts, self.scorer.config.max_length)
