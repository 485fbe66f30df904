"""Scores one part: rows and loaded images to an Arrow table, with the errors that loading found."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from imagereward.bulk.decoding.cache import FeatureCache
from imagereward.bulk.decoding.loading import ImageRequest, Images, Loaded, Loader
from imagereward.bulk.inputs.changes import ROWS_DIGEST, digest_of
from imagereward.bulk.inputs.rows import Row, TablePart, as_text
from imagereward.ensembles import Ensemble
from imagereward.errors import listing
from imagereward.images.processor import Processor, as_tensors
from imagereward.precision import on_cpu
from imagereward.records import prompt_error
from imagereward.records.arrow import arrow
from imagereward.scoring.pair_scoring import distinct, score_blocks
from imagereward.scoring.scorer import Scorer

SCORE = "score:"  # prefix of the columns with scores

Advance = Callable[[int], object]  # called with the number of rows done since the last call


def schema(models: Sequence[str], keep: Sequence[str]):
    """The Arrow schema of the output.

    models   a float32 column score:NAME for each
    keep     string columns copied from the input
    """
    pa = arrow()
    fields = {"row": pa.int64(), "id": pa.string(), "prompt": pa.string(), "image": pa.string()}
    fields |= {"width": pa.int32(), "height": pa.int32(), "tokens": pa.int32(), "truncated": pa.bool_()}
    fields |= {name: pa.string() for name in keep}
    fields |= {SCORE + name: pa.float32() for name in models}
    return pa.schema({**fields, "error": pa.string()})


def ignore(rows: int) -> None:
    """An `Advance` that does nothing."""


@dataclass
class PartScorer:
    """Scores parts. The result for a part depends on that part alone (and on cached features).

    The distinct images of rows without error are encoded in batches of `batch_size`, in order of their
    first row, so that scores equal those of `score_pairs` on these rows.

    scorer      all models as one ensemble
    loader      decodes an image again whose cached features have disappeared
    batch_size  images in one forward pass
    keep        columns of the input that are copied
    cache       image features on disk
    towers      `tower_of` each of the ensemble's encoders, the keys of the cache
    """

    scorer: Ensemble
    loader: Loader
    batch_size: int
    keep: tuple[str, ...]
    cache: FeatureCache | None = None
    towers: tuple[bytes, ...] = ()

    def __call__(self, part: TablePart, images: Images, advance: Advance = ignore):
        """Score a part: an Arrow table of `schema` with a row for each of its rows.

        Calls `advance` before every batch and at the end.
        """
        prompts = [self._prompt(row, images) for row in part.rows]
        errors = self._errors(part, prompts, images)
        scores: list[list[float | None]] = [[None] * len(self.scorer.names) for _ in part.rows]
        done = _Done(len(part.rows), advance)
        while good := [place for place, error in enumerate(errors) if error is None]:
            pairs = [(part.rows[place], str(prompts[place])) for place in good]
            try:
                found = self._scores(pairs, images, done)
            except _Vanished:  # `_pixels` has noted the image's error: score the other rows
                errors = self._errors(part, prompts, images)
                continue
            for place, values in zip(good, found.tolist()):
                finite = [value if abs(value) < float("inf") else None for value in values]
                scores[place] = finite
                if None in finite:
                    bad = [name for name, value in zip(self.scorer.names, finite) if value is None]
                    errors[place] = f"not finite: the score of {listing(bad)}"
            break
        done.up_to(1)
        return self._table(part, images, prompts, scores, errors)

    def _errors(self, part: TablePart, prompts: Sequence[str | None], images: Images) -> list[str | None]:
        """Why each row cannot be scored, or None."""
        found = [_error(row, prompt, images) for row, prompt in zip(part.rows, prompts)]
        sound = {str(prompt) for prompt, error in zip(prompts, found) if error is None}
        faults = {prompt: self.scorer.prompt_fault(prompt) for prompt in sound}
        return [error or faults[str(prompt)] for prompt, error in zip(prompts, found)]

    def _prompt(self, row: Row, images: Images) -> str | None:
        if row.prompt is None and row.image in images:
            return images[row.image].prompt
        return row.prompt

    def _scores(self, pairs: list[tuple[Row, str]], images: Images, done: "_Done") -> torch.Tensor:
        """Scores [P, C] of (row, prompt) pairs whose images were loaded; C models."""
        with on_cpu():
            refs, image_of = distinct([row.image for row, _ in pairs])
            firsts, prompt_of = distinct([prompt for _, prompt in pairs])
            rows = [pairs[index][0] for index in refs]

            def blocks() -> Iterator[tuple[tuple, int]]:
                for at in range(0, len(rows), self.batch_size):
                    done.up_to(at / len(rows))
                    block = rows[at : at + self.batch_size]
                    yield self._encoded(block, images), len(block)

            prompts = [pairs[index][1] for index in firsts]
            return score_blocks(
                self.scorer, prompts, blocks(), torch.stack([image_of, prompt_of], 1), self.scorer.heads
            )

    def _encoded(self, rows: list[Row], images: Images) -> tuple:
        """Features of the rows' images, one tensor for each of the ensemble's encoders."""
        if self.cache is None:
            pixels = zip(*(self._pixels(row, images) for row in rows))
            return self.scorer.encode_pixels([_batch(*view) for view in zip(self.scorer.processors, pixels)])
        return tuple(
            self._cached(encoder, tower, rows, images)
            for encoder, tower in zip(self.scorer.encoders, self.towers)
        )

    def _cached(self, encoder: Scorer, tower: bytes, rows: list[Row], images: Images):
        cache = self.cache
        assert cache is not None
        digests = [images[row.image].digest or b"" for row in rows]
        found = [cache.get(tower, digest) for digest in digests]
        missing = [place for place, features in enumerate(found) if features is None]
        if missing:
            view = self.scorer.processors.index(encoder.processor)
            pixels = [self._pixels(rows[place], images)[view] for place in missing]
            for place, features in zip(
                missing, encoder.encode_pixels([_batch(encoder.processor, pixels)]).cpu()
            ):
                found[place] = features
                cache.put(tower, digests[place], features)
        return torch.stack([features for features in found if features is not None]).to(encoder.device)

    def _pixels(self, row: Row, images: Images) -> tuple:
        loaded = images[row.image]
        if loaded.pixels is None and row.image is not None:
            # The loader found cached features, which another process has removed since.
            again = self.loader.load(ImageRequest(row.number, row.image, False), use_cache=False)
            if again.pixels is None:
                loaded.error = again.error
                raise _Vanished
            if again.digest != loaded.digest:  # the cache would keep these features for the other picture
                loaded.error = f"images[{row.number}] ({row.image_name}) changed while it was read"
                raise _Vanished
            loaded.pixels = again.pixels
        assert loaded.pixels is not None  # only rows without an error are scored
        return loaded.pixels

    def _table(self, part: TablePart, images: Images, prompts, scores, errors):
        readable = [prompt for prompt in prompts if prompt is not None and prompt_error(prompt) is None]
        known = dict.fromkeys(readable)
        tokens = dict(zip(known, self.scorer.count_tokens(list(known))))
        truncated = dict(zip(known, self.scorer.truncated(list(known))))
        sizes = [images.get(row.image, Loaded()) for row in part.rows]
        columns: list[Sequence] = [
            [row.number for row in part.rows],
            [row.id for row in part.rows],
            [as_text(prompt) for prompt in prompts],
            [row.image_name for row in part.rows],
            [loaded.width for loaded in sizes],
            [loaded.height for loaded in sizes],
            [tokens.get(prompt) for prompt in prompts],
            [truncated.get(prompt) for prompt in prompts],
            *([row.kept[place] for row in part.rows] for place in range(len(self.keep))),
            *zip(*scores),
            [as_text(error) for error in errors],
        ]
        contents = {image: loaded.content for image, loaded in images.items() if image is not None}
        fields = schema(self.scorer.names, self.keep)
        return arrow().table(
            columns, schema=fields.with_metadata({ROWS_DIGEST: digest_of(part.rows, contents)})
        )


def faults(table) -> tuple[np.ndarray, np.ndarray]:
    """For each row of an Arrow table of scores: whether it has an error, and whether it has no score."""
    scores = [name for name in table.column_names if name.startswith(SCORE)]
    return (
        table["error"].is_valid().to_numpy(),
        np.all([table[name].is_null().to_numpy() for name in scores], axis=0),
    )


class _Vanished(Exception):
    """The cache lost an image's features after loading, and the image cannot be read any more."""


class _Done:
    """Converts the share of a part's images that are scored into rows for `advance`."""

    def __init__(self, rows: int, advance: Advance):
        self.rows, self.advance, self.told = rows, advance, 0

    def up_to(self, share: float) -> None:
        """Report progress: `share` in [0, 1] of the part's images is scored."""
        rows = max(int(self.rows * share), self.told)  # a part that is scored again does not go back
        self.advance(rows - self.told)
        self.told = rows


def _error(row: Row, prompt: str | None, images: Images) -> str | None:
    if row.error is not None:
        return row.error
    loaded = images[row.image]
    missing = loaded.no_prompt if row.prompt is None else None
    return loaded.error or missing or prompt_error(prompt)


def _batch(processor: Processor, items: Sequence) -> Any:
    return processor.collate([as_tensors(each) for each in items])
