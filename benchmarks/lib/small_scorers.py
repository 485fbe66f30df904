"""Small scorers of every kind with random weights, a few hundred kilobytes each."""

from imagereward.checkpoints.assembling import random_scorer
from imagereward.config import ScorerConfig
from imagereward.images.preprocess import Preprocess
from imagereward.scoring.scorer import Scorer

SIZE = 32
BLIP = {
    "vision": {"img_size": SIZE, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "text": {"width": 32, "depth": 2, "heads": 2, "mlp_width": 64},
    "projection": 8,
}
CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
CONFIGS = {
    "ImageReward": ScorerConfig("ImageReward", BLIP, Preprocess(SIZE), mean=0.17, std=1.03),
    "BLIP": ScorerConfig("BLIP", BLIP, Preprocess(SIZE)),
    "CLIP": ScorerConfig("CLIP", CLIP, Preprocess(SIZE), max_length=77),
    "Aesthetic": ScorerConfig("Aesthetic", CLIP, Preprocess(SIZE), max_length=77),
    "HPS": ScorerConfig("CLIP", CLIP, Preprocess(SIZE, "pad"), max_length=77),
    "PickScore": ScorerConfig(
        "CLIP",
        CLIP,
        Preprocess(SIZE, "transformers"),
        max_length=77,
        scaled=True,
        tokenization="transformers",
    ),
}


def small_scorer(kind: str, **options) -> Scorer:
    """A scorer of a kind in `CONFIGS`, on the CPU; `options` are those of `random_scorer`."""
    scorer = random_scorer(CONFIGS[kind], "cpu", **options)
    scorer.name = kind
    return scorer
