"""The ImageReward scorer, BLIP's text encoder with cross-attention to the image and a head for the score.

Xu et al., "ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation",
2023 (arXiv:2304.05977).
"""

import torch
import torch.nn.functional as F
from torch import nn

from imagereward.config import ScorerConfig
from imagereward.models.blip import BLIPBase
from imagereward.precision import full_precision


class RewardHead(nn.Module):
    """Five linear layers with nothing but dropout between them, so at evaluation one dot product, unless an
    adapter changes one of them.

    The same head, under the same names, sits on ImageReward's text feature and, in the Aesthetic
    score, on a CLIP embedding.
    """

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, features_P_D: torch.Tensor) -> torch.Tensor:
        """Features [P, D] to raw rewards [P, 1]."""
        if self.training:
            return self.layers(features_P_D.to(next(self.parameters()).dtype))
        if self._is_changed():
            with torch.autocast(features_P_D.device.type, enabled=False):
                return self.layers(features_P_D.to(next(self.parameters()).dtype))
        # Folding costs what one row through the layers costs, so it is done anew on every call
        # and can never be stale. In full precision also under autocast or after .half().
        with torch.autocast(features_P_D.device.type, enabled=False):
            linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
            weight, bias = full_precision(linear[-1].weight), full_precision(linear[-1].bias)
            for layer in reversed(linear[:-1]):
                bias = bias + weight @ full_precision(layer.bias)
                weight = weight @ full_precision(layer.weight)
            return F.linear(full_precision(features_P_D), weight, bias)

    def _is_changed(self) -> bool:
        """Whether the layers are more than their weights: one has a hook, or another took its place."""
        hooked = any(each._forward_hooks or each._forward_pre_hooks for each in self.layers.modules())
        return hooked or not all(isinstance(layer, nn.Linear | nn.Dropout) for layer in self.layers)


class ImageReward(BLIPBase):
    """(head(first token of the prompt read with the image) - mean) / std; about normal(0, 1)."""

    def __init__(self, config: ScorerConfig):
        super().__init__(config)
        self.mlp = RewardHead(self.blip.shape.text.width)

    @property
    def mean(self) -> float:
        return self.config.mean

    @property
    def std(self) -> float:
        return self.config.std

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Image tokens [B, N, W]. Keys and values are left to the head: they are 18 times larger,
        and projecting them is 6 % of an image pass, so tokens are what a cache should keep."""
        return self.blip.visual_encoder(pixels.to(self.dtype))

    def encode_prompts(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = self.blip.wordpiece.encode(prompts, self.config.max_length)
        return ids.to(self.device), mask.to(self.device)

    def head(self, image_features, prompt_features, pairs_P_2):
        image_index, prompt_index = pairs_P_2.unbind(1)
        ids, mask = (part[prompt_index.to(part.device)] for part in prompt_features)
        length = int(mask.sum(1).max())
        images, rows = image_features.shape[0], pairs_P_2.shape[0]
        grouped = rows % images == 0 and torch.equal(
            image_index, torch.arange(images).repeat_interleave(rows // images)
        )
        return self._reward(
            ids[:, :length],
            mask[:, :length],
            image_features,
            None if grouped else image_index.to(image_features.device),
        )

    def score_gard(
        self,
        prompt_ids: torch.Tensor,
        prompt_attention_mask: torch.Tensor,
        image: torch.Tensor,
    ) -> torch.Tensor:
        """Differentiable rewards [B, 1], by the name and signature of the original.

        prompt_ids and prompt_attention_mask are [B, T] from `model.blip.tokenizer`, image is
        [B, 3, 224, 224], normalised as `model.preprocess` does. New code: `reward(pixels, prompts)`.
        """
        tokens = self.encode_images(image)
        return self._reward(prompt_ids, prompt_attention_mask, tokens, None)[:, None]

    score_grad = score_gard

    def _reward(self, ids, mask, tokens, image_index):
        hidden = self.blip.text_encoder(ids, mask, tokens, image_index, first_only=True)
        raw = self.mlp(hidden[:, 0]).squeeze(1)
        return (full_precision(raw) - self.mean) / self.std
