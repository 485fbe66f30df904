"""What a judge learns from: ranked prompts with usable images, and the pairs of their images."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from imagereward.agreement.rankings import RankedPrompt, ranking_file, read_rankings
from imagereward.errors import InputError
from imagereward.tuning.data.image_pairs import skipped
from imagereward.tuning.judges.config import JudgeTrainingConfig


class Pairs(NamedTuple):
    """P pairs of a batch's images: indices of the better and the worse one, and whether they are tied."""

    better: torch.Tensor
    worse: torch.Tensor
    tied: torch.Tensor


def pairs_of(prompts: Sequence[RankedPrompt], ties: bool) -> Pairs:
    """All pairs of images of the same prompt; those of equal rank only if `ties`. Images count through."""
    found, start = [], 0
    for prompt in prompts:
        ranks = prompt.ranking
        for one in range(len(ranks)):
            for other in range(one + 1, len(ranks)):
                if ranks[one] != ranks[other] or ties:
                    order = (one, other) if ranks[one] <= ranks[other] else (other, one)
                    found.append((start + order[0], start + order[1], ranks[one] == ranks[other]))
        start += len(ranks)
    better, worse, tied = (torch.tensor(column) for column in zip(*found))
    return Pairs(better, worse, tied.bool())


def rankings(config: JudgeTrainingConfig, split: str) -> list[RankedPrompt]:
    """The ranked prompts of a split, "train" or "valid", that have a pair of usable images to learn from.

    Raises InputError if there is none, and for more unusable images than `max_bad_share`.
    """
    path = ranking_file(config.data, split)
    ties = config.loss == "ties"
    records = read_rankings(path, encoding=config.encoding, allow_ties=ties)
    bad = skipped(path, [image for each in records for image in each.generations], config.max_bad_share)
    kept = []
    for each in records:
        there = [place for place, image in enumerate(each.generations) if str(image) not in bad]
        ranks = tuple(each.ranking[place] for place in there)
        if len(ranks) > 1 and (ties or len(set(ranks)) > 1):
            images = tuple(each.generations[place] for place in there)
            kept.append(RankedPrompt(each.id, each.prompt, images, ranks))
    if not kept:
        raise InputError(f"{path}: no prompt has a pair of usable images to learn from")
    return kept
