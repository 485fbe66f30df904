"""Learning what images show from (prompt, image) pairs, before anyone ranks them.

The three pretraining losses of ALBEF (Li et al. 2021, arXiv:2107.07651, section 3.2), of which BLIP kept the
first two: contrast between the towers, matching through the text encoder that looks at the image, and words
that are masked and must be read from the image. From random weights, rankings alone teach quality but hardly
what a prompt means.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from imagereward.models.blip import BLIPBase


def contrastive_loss(similarity_B_T: torch.Tensor, same_B_T: torch.Tensor) -> torch.Tensor:
    """Cross-entropy both ways between B images (rows) and T >= B prompts; prompt i < B is image i's.

    `same` is true where image i and prompt j say the same; such pairs share the target. Prompts beyond B
    belong to no image: images must not choose them, and they choose none.
    """
    count = len(similarity_B_T)
    square, same = similarity_B_T[:, :count], same_B_T[:, :count]
    by_image = F.cross_entropy(similarity_B_T, same_B_T / same_B_T.sum(1, keepdim=True))
    by_prompt = F.cross_entropy(square.T, (same / same.sum(0, keepdim=True)).T)
    return (by_image + by_prompt) / 2


def negatives(similarity_B_B: torch.Tensor, same_B_B: torch.Tensor) -> torch.Tensor:
    """For every row a column that is not the same: half of the chance by exp(similarity), half uniform.

    Hard ones alone teach nothing before the easy ones are learned. A row that equals all columns gets
    one of those.
    """
    weights = (similarity_B_B.detach().softmax(1) + 1 / len(similarity_B_B)) / 2
    alone = same_B_B.all(1, keepdim=True)
    return torch.multinomial(weights.masked_fill(same_B_B & ~alone, 0), 1)[:, 0]


def masked_words(ids_B_T: torch.Tensor, special: tuple[int, ...], mask_id: int, share: float = 0.3):
    """(ids with a share of the words replaced by [MASK], which places those are); special tokens stay."""
    words = ~torch.isin(ids_B_T, torch.tensor(special, device=ids_B_T.device))
    chosen = words & (torch.rand(ids_B_T.shape, device=ids_B_T.device) < share)
    return ids_B_T.masked_fill(chosen, mask_id), chosen


class ImageText(nn.Module):
    """A BLIP under these losses, with the temperature and the matching head they need.

    Where the data has, for every image, a prompt that is nearly but not quite its own, this is one more
    negative in both losses (as in Yuksekgonul et al. 2023, arXiv:2210.01936), and the hardest.
    """

    def __init__(self, scorer: BLIPBase):
        super().__init__()
        self.scorer = scorer
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.match = nn.Linear(scorer.blip.shape.text.width, 1)

    def forward(self, pixels: torch.Tensor, prompts: list[str], wrong: list[str] | None = None) -> dict:
        """`loss` and its parts: pixels [B, 3, S, S]; image i shows what prompts[i] says, and not wrong[i]."""
        blip, texts, count = self.scorer.blip, prompts + (wrong or []), len(prompts)
        tokens_B_N_W = self.scorer.encode_pixels([pixels])
        ids, mask = (part.to(pixels.device) for part in self._tokenised(texts))
        alone = blip.text_encoder(ids, mask, first_only=True)[:, 0]
        image_features = F.normalize(blip.vision_proj(tokens_B_N_W[:, 0]).float(), dim=-1)
        text_features = F.normalize(blip.text_proj(alone).float(), dim=-1)
        similarity_B_T = self.log_scale.exp().clamp(max=100) * image_features @ text_features.T
        numbers = torch.tensor([texts.index(text) for text in texts], device=pixels.device)
        same_B_T = numbers[:count, None] == numbers
        contrast = contrastive_loss(similarity_B_T, same_B_T)
        similarity, same = similarity_B_T[:, :count], same_B_T[:, :count]
        own = torch.arange(count, device=pixels.device)
        images = [own, own, negatives(similarity.T, same.T)]
        asked = [own, negatives(similarity, same), own]
        if wrong:
            images.append(own)
            asked.append(own + count)
        match = self._matching(ids, mask, tokens_B_N_W, torch.cat(images), torch.cat(asked), same_B_T)
        words = self._masked_words(ids[:count], mask[:count], tokens_B_N_W)
        parts = {"contrast": contrast.detach(), "match": match.detach(), "words": words.detach()}
        return {"loss": contrast + match + words, **parts}

    def _matching(self, ids, mask, tokens_B_N_W, image, text, same_B_T) -> torch.Tensor:
        """Does this text belong to this image? Binary cross-entropy over the rows."""
        read = self.scorer.blip.text_encoder(ids[text], mask[text], tokens_B_N_W, image, first_only=True)
        logits = self.match(read[:, 0]).float()[:, 0]
        return F.binary_cross_entropy_with_logits(logits, same_B_T[image, text].float())

    def _masked_words(self, ids, mask, tokens_B_N_W) -> torch.Tensor:
        """Which word was masked? Cross-entropy over the vocabulary, by its own embeddings."""
        wordpiece, encoder = self.scorer.blip.wordpiece, self.scorer.blip.text_encoder
        special = (wordpiece.pad_id, wordpiece.cls_id, wordpiece.sep_id)
        hidden, chosen = masked_words(ids, special, wordpiece.mask_id)
        read = encoder(hidden, mask, tokens_B_N_W)[chosen]
        logits = read.float() @ encoder.embeddings["word_embeddings"].weight.float().T
        return F.cross_entropy(logits, ids[chosen], reduction="sum") / max(1, len(read))

    def _tokenised(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scorer.blip.wordpiece.encode(texts, self.scorer.config.max_length)
