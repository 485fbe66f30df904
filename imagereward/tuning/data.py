"""Training data: ranked prompts and (prompt, image) pairs as torch data sets, and how they become batches."""

import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from imagereward import shapes
from imagereward.errors import ImageReadError, InputError, listing
from imagereward.images import Preprocess, read_image
from imagereward.rankings import RankedPrompt, read_rankings
from imagereward.tuning.objectives.preference import NO_IMAGE

log = logging.getLogger(__name__)


class RankedImages(Dataset):
    """A file of rankings, every image of it known to decode.

    All images are read once at the start: those that are missing or damaged are left out, logged by name
    and kept in `skipped` (path -> what is wrong), and with them prompts that have no two images of
    unequal rank left. Raises InputError if more than `most_bad` (a share) of the images had to be.
    """

    def __init__(self, path: str | os.PathLike, preprocess: Preprocess, most_bad: float = 0.01):
        records = read_rankings(path)
        self.preprocess = preprocess
        self.skipped = unreadable([image for record in records for image in record.generations])
        total = sum(len(record.generations) for record in records)
        if self.skipped:
            found = f"{path}: {len(self.skipped)} of {total} images cannot be used: "
            if len(self.skipped) > most_bad * total:
                raise InputError(
                    f"{found}{listing(self.skipped.values(), 4)}; at most {most_bad:.2%} may be (most_bad=)"
                )
            log.warning("%s%s; they are skipped", found, listing(self.skipped.values(), 20))
        kept = [self._without_skipped(record) for record in records]
        self.prompts = [record for record in kept if len(set(record.ranking)) > 1]
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


class PairedImages(Dataset):
    """(prompt, image) pairs from a JSON list of `{text, image}`, image paths relative to it.

    Images are checked as in `RankedImages`.
    """

    def __init__(self, path: str | os.PathLike, preprocess: Preprocess, most_bad: float = 0.01):
        path = Path(path).expanduser()
        try:
            records = json.loads(path.read_text(encoding="utf-8"))
            pairs = [(record["text"], path.parent / record["image"]) for record in records]
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist; expected a JSON list of {{text, image}}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no JSON list of {{text, image}}: {error!r}") from error
        self.preprocess = preprocess
        self.skipped = unreadable([image for _, image in pairs])
        self.pairs = [(text, image) for text, image in pairs if str(image) not in self.skipped]
        if len(self.skipped) > most_bad * len(pairs) or not self.pairs:
            raise InputError(
                f"{path}: {len(self.skipped)} of {len(pairs)} images cannot be used: "
                f"{listing(self.skipped.values(), 4)}; at most {most_bad:.2%} may be (most_bad=)"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict:
        prompt, path = self.pairs[index]
        return {"prompt": prompt, "pixels": self.preprocess.pixels(read_image(path, index))}


class ShapesPairs(Dataset):
    """Clean and faithful Shapes, drawn when asked for: pair i is a function of (seed, i)."""

    def __init__(self, count: int, seed: int, preprocess: Preprocess):
        self.count, self.seed, self.preprocess = count, seed, preprocess

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        prompt, image = shapes.pair(index, self.seed, size=self.preprocess.size)
        return {"prompt": prompt, "pixels": self.preprocess.pixels(image)}


def collate_rankings(items: Sequence[dict]) -> dict:
    """All images of all prompts in order, and ranks [B, K] with `NO_IMAGE` where a prompt has fewer."""
    ranks = torch.full((len(items), max(len(item["ranking"]) for item in items)), NO_IMAGE)
    for row, item in enumerate(items):
        ranks[row, : len(item["ranking"])] = torch.tensor(item["ranking"])
    pixels = torch.cat([item["pixels"] for item in items])
    return {"pixels": pixels, "prompts": [item["prompt"] for item in items], "ranks": ranks}


def collate_pairs(items: Sequence[dict]) -> dict:
    """Images [B, 3, S, S] and their prompts."""
    pixels = torch.stack([item["pixels"] for item in items])
    return {"pixels": pixels, "prompts": [item["prompt"] for item in items]}


def unreadable(paths: Sequence[Path]) -> dict[str, str]:
    """Those of the files that do not decode, and what is wrong with each."""

    def fault(path: Path) -> str | None:
        try:
            read_image(path)
        except ImageReadError as error:
            return str(error).removeprefix("images[0] ")
        return None

    with ThreadPoolExecutor(thread_name_prefix="imagereward-check") as pool:
        faults = pool.map(fault, paths)
        bar = tqdm(faults, "checking images", len(paths), disable=len(paths) < 5000, unit="image")
        return {str(path): found for path, found in zip(paths, bar) if found}
