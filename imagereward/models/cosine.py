"""The cosine of image and prompt embeddings, the head of CLIP-like scorers."""

import torch
import torch.nn.functional as F

from imagereward.precision import full_precision

# Prompts in one pass of a text tower: bounds memory when there are a million of them.
PROMPT_BATCH = 256


def cosine(image_features, prompt_features, pairs_P_2: torch.Tensor) -> torch.Tensor:
    """Cosine per pair, in float32 or better whatever the features' dtype: [P], in [-1, 1]."""
    images, prompts = (F.normalize(full_precision(x), dim=-1) for x in (image_features, prompt_features))
    image_index, prompt_index = pairs_P_2.to(images.device).unbind(1)
    return (images[image_index] * prompts[prompt_index]).sum(1)
