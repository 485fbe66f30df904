"""`BulkJob`: the input, models and settings of a bulk run, which every scoring process receives."""

import os
from collections.abc import Collection, Container, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from imagereward.bulk.decoding.cache import FeatureCache, FeatureReader, tower_of
from imagereward.bulk.decoding.decoders import Decoders
from imagereward.bulk.decoding.loading import Loader, image_requests_of, load_parts, one_ahead
from imagereward.bulk.inputs.changes import InputWatch, content_of, identity
from imagereward.bulk.inputs.rows import Columns, Image, TablePart, parts_of, rows_of
from imagereward.bulk.inputs.source import Source
from imagereward.bulk.scoring import Advance, PartScorer, ignore
from imagereward.bulk.versions import versions
from imagereward.checkpoints.adapted import with_adapter
from imagereward.checkpoints.hub import sha256_of
from imagereward.checkpoints.loading import judge_source, load
from imagereward.ensembles import Ensemble, ensemble
from imagereward.images.encoded import decoding_limits
from imagereward.images.processor import Processor
from imagereward.scoring.scorer import Scorer
from imagereward.scoring.unparted import as_scorer

# Most decoding processes for one scoring process: beyond that, decoding is seldom the bottleneck.
MOST_WORKERS = 16


@dataclass(frozen=True)
class Cache:
    """The directory of the feature cache, and its size in bytes."""

    directory: Path
    budget: int


@dataclass(frozen=True)
class BulkJob:
    """A bulk run's input, models and settings; pickled for other processes and machines.

    watch         the state of the input's files when the run began
    images        folder that relative image paths start at; None: the folder of their table
    out           the folder of the output
    device_kind   "cpu", "cuda" ...
    part_rows     rows of a part
    workers       decoding processes for each scoring process
    load_options  further arguments of `load`
    """

    source: Source
    watch: InputWatch
    images: Path | None
    out: Path
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
        """Number of parts."""
        return -(-self.rows // self.part_rows)

    def rows_in(self, parts: Collection[int]) -> int:
        """Number of rows in these parts, of which only the last one may be short."""
        short = self.count * self.part_rows - self.rows
        return len(parts) * self.part_rows - short * (self.count - 1 in parts)

    def fingerprint(self, models: dict[str, Any]) -> dict[str, Any]:
        """Everything that decides the output; a run resumes another's parts only if both have the same.

        models   that of `models_fingerprint`, which hashes all weights: call it once
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
        found |= decoding_limits()
        return found | models

    def scorers(self) -> list[Scorer]:
        """The models, to describe them: with weights that are mapped and not read, or of judges with none."""
        return [
            as_scorer(load(model, **self._describing(model), **self.load_options)) for model in self.models
        ]

    def _describing(self, model: str) -> dict[str, Any]:
        """The device and dtype to describe a model by."""
        base, adapter = with_adapter(model)
        if judge_source(os.fspath(base), self.load_options.get("local_files_only", False)) is None:
            return {"device": "cpu"}
        # An adapter checks the weights that it is put on.
        return {"device": "meta" if adapter is None else "cpu", "dtype": self.dtype}

    def models_fingerprint(self, scorers: Sequence[Scorer]) -> dict[str, Any]:
        """The models' part of the fingerprint: names, configs, SHA-256 of weights, versions of libraries.

        It must be the same on every machine of a run. `scorers` are those of `scorers()`.
        """
        found: dict[str, Any] = {"models": list(self.models), "dtype": self.dtype}
        for model, scorer in zip(self.models, scorers, strict=True):
            config = scorer.config.to_dict()
            found[f"preprocessing of {model}"] = config.pop("preprocess")
            found[f"config of {model}"] = config
            found[f"weights of {model}"] = [sha256_of(path) for path in scorer.files.values()]
        return found | {f"version of {name}": number for name, number in versions().items()}

    def decoding_loader(self) -> Loader:
        """The loader for a machine that decodes but does not score: without the feature cache."""
        each = [processor for scorer in self.scorers() for processor in scorer.processors]
        return self.loader(tuple(dict.fromkeys(each)))

    def parts(self, wanted: Container[int]) -> Iterator[TablePart]:
        """The parts with these indices, in order."""
        rows = rows_of(
            self.source, self.columns, self.images, self.out, lambda row: row // self.part_rows in wanted
        )
        return parts_of(rows, self.part_rows)

    def part_scorer(self, device: str) -> PartScorer:
        """A scorer of parts on `device`: an ensemble of all models, which share pixels and image encoders."""
        scorer = self._ensemble(device=device, dtype=self.dtype)
        settings = (self.batch_size, self.columns.keep)
        if self.cache is None:
            return PartScorer(scorer, self.loader(scorer.processors), *settings)
        cache = FeatureCache(self.cache.directory, self.cache.budget)
        towers = tuple(tower_of(encoder) for encoder in scorer.encoders)
        loader = self.loader(scorer.processors, cache.reader(towers))
        return PartScorer(scorer, loader, *settings, cache, towers)

    def loader(self, processors: tuple[Processor, ...], features: FeatureReader | None = None) -> Loader:
        """The loader that reads and decodes this job's images."""
        return Loader(
            processors,
            digests=self.cache is not None,
            features=features,
            markup=self.columns.markup,
            contents=self._images_are_input,
        )

    def contents(self, part: TablePart) -> dict[Image, str]:
        """{image: `content_of` it} for the part's images, if images are the input; otherwise empty."""
        if not self._images_are_input:
            return {}
        return {request.image: content_of(request.image) for request in image_requests_of(part)}

    @property
    def _images_are_input(self) -> bool:
        return self.source.prompts_beside_images  # true of folders and shards

    def scored(
        self, wanted: Container[int], device: str, advance: Advance = ignore
    ) -> Generator[tuple[int, Any], None, None]:
        """Score the parts `wanted`: yields (index, Arrow table) in order; processes decode in advance.

        advance   called with the number of newly scored rows as batches go through the models

        Raises InputError if a file of the input changes: before the next part, or later where checks would
        take more than 2 % of the time (`InputWatch.check`).
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
                    # The caller has written the part: a resumed run then finds the cache as it was before.
                    score.cache.commit()

    def _ensemble(self, **options) -> Ensemble:
        return ensemble(dict.fromkeys(self.models, 1.0), **options, **self.load_options)


def shares(pending: list[int], count: int) -> list[list[int]]:
    """Split `pending` into `count` runs of consecutive parts, so that each reader skips the others' rows."""
    bounds = [len(pending) * place // count for place in range(count + 1)]
    return [pending[start:end] for start, end in pairwise(bounds)]


def default_workers(processes: int) -> int:
    """Decoding processes for each of `processes` scoring processes: by the CPUs, 1 to `MOST_WORKERS`."""
    return max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // processes))
