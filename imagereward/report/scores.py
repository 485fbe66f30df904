"""Reads a table of scores, as `score_table` writes it, into the columns `Scores`."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from imagereward.bulk.inputs.rows import as_text
from imagereward.bulk.inputs.source import Source
from imagereward.bulk.inputs.sources import open_source
from imagereward.bulk.output import FINGERPRINT, NAME_IN_PARQUET
from imagereward.bulk.scoring import SCORE
from imagereward.errors import InputError, listing, missing_extra
from imagereward.records.arrow import arrow

GENERATOR = "generator"  # the column with the generators' names, unless the caller names another
NONE = "(none)"  # the generator of rows that name none
TEXTS = ("prompt", "image", "error", "truncated")


@dataclass(frozen=True)
class Scores:
    """N rows with scores of S scorers. Row n has prompts[prompt_N[n]] and generators[generator_N[n]].

    name         file name of the table
    scores_N_S   NaN where a row has no score
    prompt_N     index of the prompt; -1 for a row without one
    generator_N  index of the generator
    images       paths as in the table; None for a row without a path
    grouped_by   where the generators' names come from, in words
    errors       (row, reason) of the rows with an error
    truncated    number of rows whose prompt was cut
    fingerprint  of the run that wrote the table; empty if unknown
    """

    name: str
    scorers: list[str]
    scores_N_S: np.ndarray
    prompts: list[str]
    prompt_N: np.ndarray
    generators: list[str]
    generator_N: np.ndarray
    grouped_by: str
    images: list[str | None]
    errors: list[tuple[int, str]]
    truncated: int
    fingerprint: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def failed(self) -> int:
        """Number of rows with an error and no score."""
        unscored = np.isnan(self.scores_N_S).all(1)
        return sum(bool(unscored[row]) for row, _ in self.errors)

    @property
    def partly(self) -> int:
        """Number of rows with an error and the scores of some scorers."""
        return len(self.errors) - self.failed

    @cached_property
    def digits(self) -> list[int]:
        """Decimals to print for each scorer: 2, or 4 if its scores range over less than 0.5 (cosines)."""
        lows, highs = (pick(self.scores_N_S, axis=0) for pick in (np.fmin.reduce, np.fmax.reduce))
        return [2 if high - low >= 0.5 else 4 for low, high in zip(lows, highs)]

    def said(self, row: int, scorer: int) -> str:
        """The score of a row by a scorer, as text."""
        return as_number(self.scores_N_S[row, scorer], self.digits[scorer])


class _Codes:
    """Assigns each distinct value the next number, and collects the numbers of all rows."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.rows: list[int] = []

    def add(self, value: str | None) -> None:
        """Append a row with this value; None becomes -1."""
        self.rows.append(-1 if value is None else self.names.setdefault(value, len(self.names)))


def read_scores(path: str | os.PathLike, generator: str | None = None) -> Scores:
    """Read the table at `path`: .parquet, .jsonl or .csv with columns score:NAME.

    generator   the column with the generators' names; default: "generator", or else the image's folder

    Raises InputError for an unknown column, a table without rows or scores, and a score that is no number;
    MissingExtraError for Parquet without pyarrow.
    """
    if Path(path).suffix.lower() == ".parquet":
        _check_arrow()
    source = open_source(path)
    present = source.columns()
    scorers = [name for name in present if name.startswith(SCORE)]
    if not scorers:
        raise InputError(
            f"{source.name} has no scores: expected columns {SCORE}NAME, as score-table writes them; "
            f"it has {listing(present, 40)}"
        )
    if generator is not None and generator not in present:
        raise InputError(f"{source.name} has no column {generator!r}; it has {listing(present, 40)}")
    column = generator or (GENERATOR if GENERATOR in present else None)
    wanted = list(dict.fromkeys(name for name in (*TEXTS, column, *scorers) if name in present))

    def group(record: dict) -> str | None:
        return as_text(record.get(column)) if column else _folder(record.get("image"))

    found = _Columns(source, scorers, group)
    for number, record, _ in source.records(lambda _: True, wanted):
        found.add(number, record)
    return found.scores(
        f"the column {column}" if column else "the folders of the images",
        tidy=(lambda names: names) if column else _without_common_parent,
        fingerprint=read_fingerprint(Path(path).expanduser()),
    )


class _Columns:
    """Collects the columns of `Scores` row by row."""

    def __init__(self, source: Source, scorers: list[str], group: Callable[[dict], str | None]):
        self.source = source
        self.scorers = scorers
        self.group = group
        self.prompts, self.generators = _Codes(), _Codes()
        self.images: list[str | None] = []
        self.values: list[tuple[float, ...]] = []
        self.errors: list[tuple[int, str]] = []
        self.truncated = 0

    def add(self, number: int, record: dict | str) -> None:
        """Append a row; InputError if its record cannot be read."""
        if isinstance(record, str):
            raise InputError(f"{self.source.name}, row {number}: {record}")
        image, prompt, error = (as_text(record.get(name) or None) for name in ("image", "prompt", "error"))
        self.images.append(image)
        self.prompts.add(prompt)
        self.generators.add(self.group(record) or NONE)
        self.values.append(tuple(self._number(record, name, number) for name in self.scorers))
        self.truncated += str(record.get("truncated")).lower() == "true"
        if error is not None:
            self.errors.append((number, error))

    def scores(
        self, grouped_by: str, tidy: Callable[[list[str]], list[str]], fingerprint: dict[str, Any]
    ) -> Scores:
        """The collected rows as `Scores`. InputError if no row has a score."""
        values = np.array(self.values, dtype=float).reshape(-1, len(self.scorers))
        if not np.isfinite(values).any():
            reason = (
                f", and the error of row {self.errors[0][0]} is: {self.errors[0][1]}" if self.errors else ""
            )
            raise InputError(f"{self.source.name} has {len(values)} rows and no score{reason}")
        return Scores(
            name=Path(self.source.name).name,
            scorers=[name.removeprefix(SCORE) for name in self.scorers],
            scores_N_S=values,
            prompts=list(self.prompts.names),
            prompt_N=np.array(self.prompts.rows),
            generators=tidy(list(self.generators.names)),
            generator_N=np.array(self.generators.rows),
            grouped_by=grouped_by,
            images=self.images,
            errors=self.errors,
            truncated=self.truncated,
            fingerprint=fingerprint,
        )

    def _number(self, record: dict, name: str, row: int) -> float:
        value = record.get(name)
        if value is None or value == "":
            return np.nan
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.source.name}, row {row}, {name}: {value!r} is no number") from error
        return number if np.isfinite(number) else np.nan


def as_number(value: float, digits: int) -> str:
    """A number as text, with the sign U+2212 for minus, no sign before zero, and a dash for NaN."""
    if not np.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def read_fingerprint(path: Path) -> dict[str, Any]:
    """The fingerprint that `score_table` wrote: in Parquet's metadata, or in a file beside other formats."""
    if path.suffix.lower() == ".parquet" and path.is_file():
        text = (arrow().parquet.read_schema(path).metadata or {}).get(NAME_IN_PARQUET, b"")
    else:
        beside = path.with_name(f"{path.name}.{FINGERPRINT}")
        text = beside.read_bytes() if beside.is_file() else b""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {"fingerprint": "cannot be read"}
    return found if isinstance(found, dict) else {"fingerprint": "cannot be read"}


def _check_arrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise missing_extra("a report of a Parquet table", "report", error) from error


def _folder(image: Any) -> str | None:
    return os.path.dirname(image) or "." if isinstance(image, str) and image else None


def _without_common_parent(folders: list[str]) -> list[str]:
    """Folders relative to their common parent, if they have one; a single folder by its last name."""
    real = [folder for folder in folders if folder != NONE]
    if len({os.path.isabs(folder) for folder in real}) > 1:
        return folders
    if len(real) < 2:
        return [folder if folder == NONE else os.path.basename(folder) or folder for folder in folders]
    common = os.path.commonpath(real)
    return [folder if folder == NONE else os.path.relpath(folder, common or ".") for folder in folders]
