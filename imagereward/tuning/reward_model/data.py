"""Data sets of a reward model's training: ranked prompts, with (prompt, image) pairs, and their batches."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.utils.data import Dataset

from imagereward.agreement.rankings import RankedPrompt, read_rankings
from imagereward.errors import InputError
from imagereward.images.preprocess import Preprocess
from imagereward.images.reading import read_image
from imagereward.tuning.data.image_pairs import ImagePairs, ShapesPairs, collate_pairs, skipped
from imagereward.tuning.reward_model.preference import NO_IMAGE

log = logging.getLogger(__name__)


class RankedImages(Dataset):
    """The ranked prompts of a file. Item i is {prompt, pixels uint8 [K, 3, S, S], ranking: K ranks}.

    path           a table of rankings; see `read_rankings`
    preprocess     resizes and crops images to S x S pixels
    max_bad_share  largest share of images that may be missing or damaged, 0..1
    encoding       encoding of a text file; default: its byte order mark, else UTF-8

    All images are decoded once at the start. Missing and damaged images are left out, logged, and kept in
    `skipped` ({path: cause}). Prompts without two images of unequal rank are left out too. Raises InputError
    for more unusable images than `max_bad_share`, and if no prompt is left.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        preprocess: Preprocess,
        max_bad_share: float = 0.01,
        encoding: str | None = None,
    ):
        records = read_rankings(path, encoding=encoding)
        self.preprocess = preprocess
        self.skipped = skipped(
            path, [image for record in records for image in record.generations], max_bad_share
        )
        kept = [self._without_skipped(record) for record in records]
        self.prompts = [record for record in kept if len(set(record.ranking)) > 1]
        if not self.prompts:
            raise InputError(f"{path}: no prompt has a pair of usable images of unequal rank")
        if len(self.prompts) < len(records):
            log.warning("%s: %d prompts have no pair of images left", path, len(records) - len(self.prompts))

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict:
        record = self.prompts[index]
        pixels = [
            self.preprocess.pixels(read_image(path, place)) for place, path in enumerate(record.generations)
        ]
        return {"prompt": record.prompt, "pixels": torch.stack(pixels), "ranking": record.ranking}

    def _without_skipped(self, record: RankedPrompt) -> RankedPrompt:
        kept = [i for i, path in enumerate(record.generations) if str(path) not in self.skipped]
        return replace(
            record,
            generations=tuple(record.generations[i] for i in kept),
            ranking=tuple(record.ranking[i] for i in kept),
        )


class RankingsWithPairs(Dataset):
    """Ranked prompts, each with `count` (prompt, image) pairs; item i has the pairs from i * count on."""

    def __init__(self, rankings: RankedImages, pairs: ImagePairs | ShapesPairs, count: int):
        self.rankings, self.pairs, self.count = rankings, pairs, count

    def __len__(self) -> int:
        return len(self.rankings)

    def __getitem__(self, index: int) -> dict:
        first = index * self.count
        pairs = [self.pairs[at % len(self.pairs)] for at in range(first, first + self.count)]
        return {**self.rankings[index], "pairs": pairs}


def collate_rankings(items: Sequence[dict]) -> dict:
    """A batch of B ranked prompts.

    pixels     uint8 [N, 3, S, S]: the images of all prompts, in order
    prompts    B strings
    ranks      [B, K]: ranks of each prompt's images, and `NO_IMAGE` after the last
    rehearsed  a batch of the items' pairs (see `collate_pairs`), if they have any
    """
    ranks = torch.full((len(items), max(len(item["ranking"]) for item in items)), NO_IMAGE)
    for row, item in enumerate(items):
        ranks[row, : len(item["ranking"])] = torch.tensor(item["ranking"])
    pixels = torch.cat([item["pixels"] for item in items])
    batch = {"pixels": pixels, "prompts": [item["prompt"] for item in items], "ranks": ranks}
    pairs = [pair for item in items for pair in item.get("pairs", ())]
    return batch | ({"rehearsed": collate_pairs(pairs)} if pairs else {})
