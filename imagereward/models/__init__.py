"""Networks of scorers, one file for each kind; how to add a kind: CONTRIBUTING.md, Adding a scorer."""

from importlib import import_module

from imagereward.errors import CheckpointError
from imagereward.scoring.scorer import Scorer

# A config's kind -> where its class is; CONTRIBUTING.md, "Adding a scorer", has all places of a new kind.
# Imported on use: scoring with ImageReward alone should not wait for open_clip.
KINDS = {
    "ImageReward": "imagereward.models.imagereward:ImageReward",
    "BLIP": "imagereward.models.blip:BLIPScore",
    "CLIP": "imagereward.models.clip:CLIPScore",
    "Aesthetic": "imagereward.models.aesthetic:AestheticScore",
}


def model_class(kind: str) -> type[Scorer]:
    """The class that computes scores of this kind; CheckpointError for an unknown one."""
    if kind not in KINDS:
        raise CheckpointError(f"unknown kind of scorer {kind!r}; known: {', '.join(KINDS)}")
    module, name = KINDS[kind].split(":")
    return getattr(import_module(module), name)
