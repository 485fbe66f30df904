"""ImageText: the warm-up loss on (prompt, image) pairs, which teaches a BLIP what images show.

The sum of the three pretraining losses of ALBEF (Li et al. 2021, arXiv:2107.07651, section 3.2), of which
BLIP kept the first two: contrast between the towers; matching, by the text encoder with cross-attention to
the image; and prediction of masked words from the image. Rankings alone teach a model from random weights
the quality of images, but hardly the meaning of prompts.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from imagereward.models.blip import BLIPBase

PART = 16  # least rows in a part of `by_length`: fewer do not keep a core busy


def contrastive_loss(similarity_B_T: torch.Tensor, same_B_T: torch.Tensor) -> torch.Tensor:
    """(CE of images over all T prompts + CE of the first B prompts over the B images) / 2, a scalar.

    similarity_B_T  logits of B images and T >= B prompts. Prompt i < B belongs to image i; prompts from B on
                    belong to no image
    same_B_T        whether prompt j has the same text as image i's prompt; the target probability is shared
                    equally by all such pairs

    Radford et al. 2021 (arXiv:2103.00020), section 2.3.
    """
    count = len(similarity_B_T)
    square, same = similarity_B_T[:, :count], same_B_T[:, :count]
    by_image = F.cross_entropy(similarity_B_T, same_B_T / same_B_T.sum(1, keepdim=True))
    by_prompt = F.cross_entropy(square.T, (same / same.sum(0, keepdim=True)).T)
    return (by_image + by_prompt) / 2


def negatives(similarity_B_B: torch.Tensor, same_B_B: torch.Tensor) -> torch.Tensor:
    """For every row i the index of a random column j that is not the same, [B].

    P(j) is proportional to softmax(similarity_i)_j + 1 / B. The uniform half is for the start of training,
    when hard negatives alone teach nothing. A row that is the same as all columns gets any of them.
    """
    weights = (similarity_B_B.detach().softmax(1) + 1 / len(similarity_B_B)) / 2
    same_as_all = same_B_B.all(1, keepdim=True)
    return torch.multinomial(weights.masked_fill(same_B_B & ~same_as_all, 0), 1)[:, 0]


def by_length(lengths_B: torch.Tensor) -> list[torch.Tensor]:
    """The indices of rows sorted by length, in parts of at least `PART` rows.

    Each part can be cut to its longest row, so that short rows are not computed at the full length.
    """
    return list(lengths_B.argsort(stable=True).tensor_split(max(1, len(lengths_B) // PART)))


def masked_words(ids_B_T: torch.Tensor, special: tuple[int, ...], mask_id: int, share: float = 0.3):
    """(ids [B, T] with random words replaced by `mask_id`, bool [B, T] of the replaced places).

    special  ids of tokens that are never replaced
    share    probability that a word is replaced
    """
    words = ~torch.isin(ids_B_T, torch.tensor(special, device=ids_B_T.device))
    chosen = words & (torch.rand(ids_B_T.shape, device=ids_B_T.device) < share)
    return ids_B_T.masked_fill(chosen, mask_id), chosen


class ImageText(nn.Module):
    """A BLIP with the three losses, and the temperature and matching head that they need.

    Wrong prompts of an image, if the data has any, are further negatives of the contrast and the matching, as
    in Yuksekgonul et al. 2023 (arXiv:2210.01936).
    """

    def __init__(self, scorer: BLIPBase):
        super().__init__()
        self.scorer = scorer
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.match = nn.Linear(scorer.blip.shape.text.width, 1)

    def forward(self, pixels: torch.Tensor, prompts: list[str], wrong: list[list[str]] | None = None) -> dict:
        """{loss, contrast, match, words}: the sum with gradient, and its three terms.

        pixels   [B, 3, S, S], uint8 or float in [0, 1]
        prompts  prompts[i] describes image i
        wrong    wrong[i] are prompts that do not describe image i, the same number for every image
        """
        count = len(prompts)
        texts = prompts + [text for nth in zip(*wrong or ()) for text in nth]
        tokens_B_N_W = self.scorer.encode_pixels([pixels])
        # On the CPU, where lengths are read without waiting for a device.
        ids, mask = self.scorer.blip.wordpiece.encode(texts, self.scorer.config.max_length)
        numbers = torch.tensor([texts.index(text) for text in texts], device=pixels.device)
        same_B_T = numbers[:count, None] == numbers
        similarity_B_T = self._similarity(tokens_B_N_W, ids, mask)
        contrast = contrastive_loss(similarity_B_T, same_B_T)
        drawn = negatives(similarity_B_T[:, :count], same_B_T[:, :count])
        own_and_wrong = torch.arange(len(texts), device=pixels.device).unflatten(0, (-1, count)).T
        asked_B_K = torch.cat([own_and_wrong, drawn[:, None]], 1)
        match = self._matching(ids, mask, tokens_B_N_W, asked_B_K.cpu(), same_B_T.gather(1, asked_B_K))
        words = self._masked_words(ids[:count], mask[:count], tokens_B_N_W)
        parts = {"contrast": contrast.detach(), "match": match.detach(), "words": words.detach()}
        return {"loss": contrast + match + words, **parts}

    def _similarity(self, tokens_B_N_W, ids, mask) -> torch.Tensor:
        """Scale * cosine of the towers' projections of every image and every text, [B, T]."""
        blip, parts = self.scorer.blip, by_length(mask.sum(1))
        first_states = torch.cat([self._read(ids[rows], mask[rows], first_only=True)[:, 0] for rows in parts])
        first_states = first_states[torch.cat(parts).argsort().to(first_states.device)]
        image_features = F.normalize(blip.vision_proj(tokens_B_N_W[:, 0]).float(), dim=-1)
        text_features = F.normalize(blip.text_proj(first_states).float(), dim=-1)
        with torch.autocast(image_features.device.type, enabled=False):
            return self.log_scale.exp().clamp(max=100) * image_features @ text_features.T

    def _matching(self, ids, mask, tokens_B_N_W, asked_B_K, true_B_K) -> torch.Tensor:
        """Mean binary cross-entropy of whether text asked[i, k] belongs to image i; target true[i, k]."""
        loss = tokens_B_N_W.new_zeros((), dtype=torch.float32)
        for images in by_length(mask[asked_B_K].sum(2).amax(1)):
            texts, images_there = asked_B_K[images].flatten(), images.to(tokens_B_N_W.device)
            read = self._read(ids[texts], mask[texts], tokens_B_N_W[images_there], first_only=True)
            logits = self.match(read[:, 0]).float()[:, 0]
            true = true_B_K[images_there].flatten().float()
            loss = loss + F.binary_cross_entropy_with_logits(logits, true, reduction="sum")
        return loss / asked_B_K.numel()

    def _masked_words(self, ids, mask, tokens_B_N_W) -> torch.Tensor:
        """Mean cross-entropy of the masked words over the vocabulary; logits are products with embeddings."""
        wordpiece = self.scorer.blip.wordpiece
        vocabulary = cast(nn.Embedding, self.scorer.blip.text_encoder.embeddings["word_embeddings"]).weight
        special = (wordpiece.pad_id, wordpiece.cls_id, wordpiece.sep_id)
        hidden, chosen = masked_words(ids, special, wordpiece.mask_id)
        loss = tokens_B_N_W.new_zeros((), dtype=torch.float32)
        for rows in by_length(mask.sum(1)):
            read = self._read(hidden[rows], mask[rows], tokens_B_N_W[rows.to(tokens_B_N_W.device)])
            read = read[chosen[rows, : read.shape[1]].to(read.device)]
            with torch.autocast(read.device.type, enabled=False):
                logits = read.float() @ vocabulary.float().T
            loss = loss + F.cross_entropy(logits, ids[rows][chosen[rows]].to(logits.device), reduction="sum")
        return loss / max(1, int(chosen.sum()))

    def _read(self, ids, mask, tokens_I_N_W=None, first_only: bool = False) -> torch.Tensor:
        """The text encoder's hidden states [I, T, W], with cross-attention to images if given.

        The texts are cut to the longest of them; `first_only` computes only the first token's state.
        """
        longest, device = int(mask.sum(1).max()), self.match.weight.device
        ids, mask = ids[:, :longest].to(device), mask[:, :longest].to(device)
        return self.scorer.blip.text_encoder(ids, mask, tokens_I_N_W, first_only=first_only)
