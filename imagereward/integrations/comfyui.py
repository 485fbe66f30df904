"""A ComfyUI node that ranks a batch of images. In ComfyUI's custom_nodes/imagereward_nodes.py:

from imagereward.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
"""

from functools import lru_cache
from typing import Any

import torch

from imagereward.checkpoints.loading import load
from imagereward.checkpoints.registry import REGISTRY


@lru_cache(maxsize=1)
def _scorer(model: str):
    return load(model)


class RankImages:
    """A node from images [B, H, W, 3] in [0, 1] and a prompt to the images, best first, and their scores."""

    CATEGORY = "image/imagereward"
    FUNCTION = "rank"
    RETURN_TYPES = ("IMAGE", "FLOAT", "STRING")
    RETURN_NAMES = ("images", "scores", "text")
    OUTPUT_IS_LIST = (False, True, False)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The node's inputs, in ComfyUI's format."""
        return {
            "required": {
                "images": ("IMAGE",),
                "prompt": ("STRING", {"multiline": True}),
                "model": (list(REGISTRY), {"default": "ImageReward-v1.0"}),
                "keep": ("INT", {"default": 1, "min": 1, "max": 4096}),
            }
        }

    def rank(
        self, images: torch.Tensor, prompt: str, model: str, keep: int
    ) -> tuple[torch.Tensor, list[float], str]:
        """(images [K, H, W, 3], their scores, the scores as text): the `keep` best images, best first."""
        ranking = _scorer(model).rank(prompt, list(images.permute(0, 3, 1, 2).clamp(0, 1)))
        order = ranking.order[:keep]
        scores = [ranking.rewards[index] for index in order]
        return images[order], scores, "\n".join(f"{score:.4f}" for score in scores)


NODE_CLASS_MAPPINGS = {"ImageRewardRank": RankImages}
NODE_DISPLAY_NAME_MAPPINGS = {"ImageRewardRank": "Rank images by reward"}
