"""Data sets of choices: their images, encoded once where that is valid, and batches for each kind."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch.utils.data import Dataset

from imagereward.adapters.collection import touches
from imagereward.images.reading import identity, load_pixels
from imagereward.precision import on_cpu
from imagereward.scoring.pair_scoring import distinct
from imagereward.scoring.scorer import Scorer
from imagereward.tuning.personal.choice import Choice, Choices
from imagereward.tuning.reward_model.preference import NO_IMAGE

# Most bytes of image features that are kept; of more, images are encoded in every update.
MOST_FEATURES = 2 * 2**30
ENCODED_AT_ONCE = 8


class ImageStore:
    """The distinct images of choices as inputs of the scorer, decoded once.

    Where no adapter changes the image encoder, their features are kept instead, encoded once.

    encode_once  False: the image encoder itself learns, so features are never kept
    """

    def __init__(self, scorer: Scorer, choices: Choices, encode_once: bool = True):
        images = list(chain.from_iterable(choice.images for choice in choices.items))
        kept, self._place = distinct([identity(image) for image in images])
        self._scorer = scorer
        self.items: list[tuple] = list(load_pixels(images, scorer.processors, kept))
        self.features: torch.Tensor | list[Any] | None = None
        changed = any(touches(each.config, scorer.image_prefixes) for each in scorer.adapters.all)
        if encode_once and not changed:
            self._encode()

    def places(self, choices: Choices) -> list[list[int]]:
        """For each choice the indices of its images; `choices` must be those that the store was made of."""
        places, start = [], 0
        for choice in choices.items:
            places.append(self._place[start : start + len(choice.images)].tolist())
            start += len(choice.images)
        return places

    def encoded(self, indices: Sequence[int]) -> Any:
        """Image features of these images, in order; gradients reach an image encoder that learns."""
        if isinstance(self.features, list):
            return [self.features[index] for index in indices]
        if self.features is not None:
            return self.features[list(indices)]
        batches = zip(*(self.items[index] for index in indices))
        collated = [each.collate(items) for each, items in zip(self._scorer.processors, batches, strict=True)]
        return self._scorer.encode_pixels(collated)

    def _encode(self) -> None:
        parts: list[Any] = []
        with torch.no_grad(), self._scorer.evaluating(), on_cpu():
            for start in range(0, len(self.items), ENCODED_AT_ONCE):
                part = self.encoded(range(start, min(start + ENCODED_AT_ONCE, len(self.items))))
                if not isinstance(part, torch.Tensor | list):  # an ensemble's
                    return
                if _bytes(part[0]) * len(self.items) > MOST_FEATURES:
                    return
                parts.append(part)
        # Tensors of one shape, or, of vision-language models, an object for each image.
        alike = isinstance(parts[0], torch.Tensor)
        self.features = torch.cat(parts) if alike else [each for part in parts for each in part]


def _bytes(features: Any) -> int:
    """The bytes of the tensors of one image's features."""
    if isinstance(features, torch.Tensor):
        return features.nbytes
    return sum(map(_bytes, features)) if isinstance(features, tuple | list) else 0


class ChoiceData(Dataset):
    """Choices with the indices of their images and the base's scores of them.

    places     for each choice the indices of its images in the store
    reference  for each choice the base's scores, in units of `Standard`
    targets    for each choice its rating or label as the loss takes it; NaN for comparisons
    """

    def __init__(
        self,
        items: Sequence[Choice],
        places: Sequence[Sequence[int]],
        reference: Sequence[Sequence[float]],
        targets: Sequence[float],
    ):
        self.items, self.places = tuple(items), tuple(map(tuple, places))
        self.reference, self.targets = tuple(map(tuple, reference)), tuple(targets)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        choice = self.items[index]
        return {
            "prompt": choice.prompt,
            "places": self.places[index],
            "ranks": choice.ranks,
            "margin": choice.margin,
            "reference": self.reference[index],
            "target": self.targets[index],
        }

    def only(self, indices: Sequence[int]) -> "ChoiceData":
        """The choices with these indices."""
        return ChoiceData(
            [self.items[index] for index in indices],
            [self.places[index] for index in indices],
            [self.reference[index] for index in indices],
            [self.targets[index] for index in indices],
        )


def collate_comparisons(items: Sequence[dict]) -> dict:
    """A batch of B rankings or pairs of at most K images.

    prompts    B strings
    places     indices [N] of the images of all choices, in order
    ranks      [B, K], `NO_IMAGE` after the last
    margins    [B]
    reference  [B, K], the base's scores, 0 after the last
    """
    widest = max(len(item["ranks"]) for item in items)
    ranks = torch.full((len(items), widest), NO_IMAGE)
    reference = torch.zeros(len(items), widest)
    for row, item in enumerate(items):
        ranks[row, : len(item["ranks"])] = torch.tensor(item["ranks"])
        reference[row, : len(item["ranks"])] = torch.tensor(item["reference"])
    return {
        "prompts": [item["prompt"] for item in items],
        "places": torch.tensor([place for item in items for place in item["places"]]),
        "ranks": ranks,
        "margins": torch.tensor([float(item["margin"]) for item in items]),
        "reference": reference,
    }


def collate_values(items: Sequence[dict]) -> dict:
    """A batch of B ratings or labels: prompts, places [B], and targets float [B]."""
    return {
        "prompts": [item["prompt"] for item in items],
        "places": torch.tensor([item["places"][0] for item in items]),
        "targets": torch.tensor([float(item["target"]) for item in items]),
    }
