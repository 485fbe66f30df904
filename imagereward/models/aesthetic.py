"""The LAION aesthetic predictor: a linear head on CLIP's image embedding; the prompt is ignored.

Source: github.com/christophschuhmann/improved-aesthetic-predictor.
"""

import torch
import torch.nn.functional as F

from imagereward.adapters.streams import TokenStream
from imagereward.config import ScorerConfig
from imagereward.models.clip import CLIPBase
from imagereward.models.imagereward import RewardHead
from imagereward.precision import full_precision


class AestheticScore(CLIPBase):
    """A rating on people's scale of 1 to 10, of the image alone."""

    def __init__(self, config: ScorerConfig):
        super().__init__(config)
        self.mlp = RewardHead(self.clip_model.text_projection.shape[1])

    def token_streams(self) -> dict[str, TokenStream]:
        return {"image": super().token_streams()["image"]}

    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        return torch.empty(len(prompts), 0, device=self.device)

    def count_tokens(self, prompts: list[str]) -> list[int]:
        return [0] * len(prompts)

    def token_limits(self) -> dict[str, int]:
        return {}

    def head(self, image_features, prompt_features, pairs_P_2):
        raw = self.mlp(F.normalize(full_precision(image_features), dim=-1)).squeeze(1)
        return raw[pairs_P_2[:, 0].to(raw.device)]
