"""A table to score: everything that is the same for all parts, in whatever process they are scored."""

import os
from collections.abc import Collection, Container, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from imagereward.bulk.decoding.cache import FeatureCache, FeatureReader, tower_of
from imagereward.bulk.decoding.decoders import Decoders
from imagereward.bulk.decoding.loading import Loader, load_parts, one_ahead, wishes_of
from imagereward.bulk.inputs.changes import InputWatch, content_of, identity
from imagereward.bulk.inputs.rows import Columns, Image, Part, parts_of, rows_of
from imagereward.bulk.inputs.source import Source
from imagereward.bulk.scoring import Advance, PartScorer, ignore
from imagereward.bulk.versions import versions
from imagereward.checkpoints.hub import sha256_of
from imagereward.checkpoints.loading import load
from imagereward.ensembles import Ensemble, ensemble
from imagereward.images.processor import Processor

# Beyond this many for one model, decoding is hardly what it waits for.
MOST_WORKERS = 16


@dataclass(frozen=True)
class Cache:
    """Where image features are kept, and in how many bytes."""

    directory: Path
    budget: int


@dataclass(frozen=True)
class Job:
    """What to score with what; it travels to other processes and machines."""

    source: Source
    watch: InputWatch
    images: Path | None  # where relative paths of images start; None: at the folder of their table
    out: Path  # the folder of the output
    columns: Columns
    models: tuple[str, ...]
    device_kind: str
    dtype: str
    batch_size: int
    part_rows: int
    workers: int
    cache: Cache | None
    load_options: dict[str, Any]

    @cached_property
    def rows(self) -> int:
        """Rows of the input."""
        return self.source.count()

    @property
    def count(self) -> int:
        """Parts of the output."""
        return -(-self.rows // self.part_rows)

    def rows_in(self, parts: Collection[int]) -> int:
        """How many rows these parts have; only the last may be short."""
        short = self.count * self.part_rows - self.rows
        return len(parts) * self.part_rows - short * (self.count - 1 in parts)

    def fingerprint(self, models: dict[str, Any]) -> dict[str, Any]:
        """What two runs must have in common for their parts to belong in one output.

        models   `models_fingerprint()`, which reads all weights: call that once
        """
        found: dict[str, Any] = {
            "input": identity(self.source),
            "rows": self.rows,
            "columns": asdict(self.columns),
            "encoding": getattr(self.source, "encoding", None),
            "columns found in each file": [list(pair) for pair in getattr(self.source, "roles", ())],
            "images": None if self.images is None else os.fspath(self.images),
        }
        found |= {"device": self.device_kind, "batch_size": self.batch_size, "part_rows": self.part_rows}
        return found | models

    def models_fingerprint(self) -> dict[str, Any]:
        """The part of the fingerprint that every machine must have in common."""
        found: dict[str, Any] = {"models": list(self.models), "dtype": self.dtype}
        for model in self.models:
            scorer = load(model, "cpu", **self.load_options)  # mapped, not read
            config = scorer.config.to_dict()
            found[f"preprocessing of {model}"] = config.pop("preprocess")
            found[f"config of {model}"] = config
            found[f"weights of {model}"] = [sha256_of(path) for path in scorer.files.values()]
        return found | {f"version of {name}": number for name, number in versions().items()}

    def decoding_loader(self) -> Loader:
        """The loader of a machine that scores nothing itself."""
        return self.loader(self._ensemble(device="cpu").processors)

    def parts(self, wanted: Container[int]) -> Iterator[Part]:
        """The parts with these indices, in order."""
        rows = rows_of(
            self.source, self.columns, self.images, self.out, lambda row: row // self.part_rows in wanted
        )
        return parts_of(rows, self.part_rows)

    def part_scorer(self, device: str) -> PartScorer:
        """What scores parts on `device`: all models as one, which shares decoding and towers."""
        scorer = self._ensemble(device=device, dtype=self.dtype)
        settings = (self.batch_size, self.columns.keep)
        if self.cache is None:
            return PartScorer(scorer, self.loader(scorer.processors), *settings)
        cache = FeatureCache(self.cache.directory, self.cache.budget)
        towers = tuple(tower_of(encoder) for encoder in scorer.encoders)
        loader = self.loader(scorer.processors, cache.reader(towers))
        return PartScorer(scorer, loader, *settings, cache, towers)

    def loader(self, processors: tuple[Processor, ...], features: FeatureReader | None = None) -> Loader:
        """What reads and decodes images for this job."""
        return Loader(
            processors,
            digests=self.cache is not None,
            features=features,
            markup=self.columns.markup,
            contents=self._images_are_input,
        )

    def contents(self, part: Part) -> dict[Image, str]:
        """`content_of` the part's images, where these are the input itself."""
        if not self._images_are_input:
            return {}
        return {wish.image: content_of(wish.image) for wish in wishes_of(part)}

    @property
    def _images_are_input(self) -> bool:
        return self.source.prompts_beside_images  # of folders and shards

    def scored(
        self, wanted: Container[int], device: str, advance: Advance = ignore
    ) -> Generator[tuple[int, Any], None, None]:
        """(index, Arrow table) of these parts, in order; decoding runs ahead in processes of its own.

        `advance` is called with the number of rows that every batch stands for. Raises InputError if the
        input changes meanwhile, before a part that was read from the changed one is returned.
        """
        score = self.part_scorer(device)
        with (
            Decoders(score.loader, self.workers) as decoders,
            closing(one_ahead(load_parts(self.parts(wanted), decoders))) as loaded,
        ):
            for part, images in loaded:
                table = score(part, images, advance)
                self.watch.check()
                yield part.index, table
                if score.cache is not None:
                    score.cache.commit()  # after the part is written: a run that resumes finds the same cache

    def _ensemble(self, **options) -> Ensemble:
        return ensemble(dict.fromkeys(self.models, 1.0), **options, **self.load_options)


def shares(pending: list[int], count: int) -> list[list[int]]:
    """`pending` in `count` runs of neighbours: who reads one need not read the others' rows."""
    bounds = [len(pending) * place // count for place in range(count + 1)]
    return [pending[start:end] for start, end in pairwise(bounds)]


def default_workers(processes: int) -> int:
    """Decoding processes for each of `processes` scoring ones."""
    return max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // processes))
