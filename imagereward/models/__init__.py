"""The scorers: one small file each, holding what differs. `KINDS` maps a config's kind to its class."""

from imagereward.models.aesthetic import AestheticScore
from imagereward.models.blip import BLIPScore
from imagereward.models.clip import CLIPScore
from imagereward.models.imagereward import ImageReward
from imagereward.scorer import Scorer

KINDS: dict[str, type[Scorer]] = {
    "ImageReward": ImageReward,
    "BLIP": BLIPScore,
    "CLIP": CLIPScore,
    "Aesthetic": AestheticScore,
}
