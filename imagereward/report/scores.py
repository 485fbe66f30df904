"""A table of scores, as score-table writes it, read into columns."""

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

GENERATOR = "generator"  # the column that tells generators apart, where the caller names none
NONE = "(none)"  # what a row without a generator is counted under
TEXTS = ("prompt", "image", "error", "truncated")


@dataclass(frozen=True)
class Scores:
    """N rows with scores by S scorers. Row n is of prompts[prompt_N[n]] and generators[generator_N[n]].

    scores_N_S   NaN where a row has no score
    prompt_N     -1 for a row without a prompt
    images       paths as they are in the table; None where there is none
    grouped_by   what tells the generators apart, in words
    errors       (row, reason) of the rows that have one
    fingerprint  of the run that wrote the table; empty if it is not known
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
    def digits(self) -> list[int]:
        """For each scorer, the decimals that tell its scores apart: a cosine needs more than a reward."""
        lows, highs = (pick(self.scores_N_S, axis=0) for pick in (np.fmin.reduce, np.fmax.reduce))
        return [2 if high - low >= 0.5 else 4 for low, high in zip(lows, highs)]

    def said(self, row: int, scorer: int) -> str:
        """A score as people read it."""
        return as_number(self.scores_N_S[row, scorer], self.digits[scorer])


class _Codes:
    """Numbers for values, in the order in which they first come."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.rows: list[int] = []

    def add(self, value: str | None) -> None:
        """The next row has this value, or none."""
        self.rows.append(-1 if value is None else self.names.setdefault(value, len(self.names)))


def read_scores(path: str | os.PathLike, generator: str | None = None) -> Scores:
    """The table at `path`: .parquet, .jsonl or .csv with columns score:NAME.

    `generator` names the column that tells generators apart. Without it that is the column "generator", or
    else the folder of the image. Raises InputError for a column that is not there, naming those that are,
    for a table without rows or scores, and for a cell that is no number.
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
    """What is gathered while rows come."""

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
        """The next row."""
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
        """All rows, as columns. InputError if there is nothing to report."""
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
    """With a true minus sign, and no sign before zero; a dash for no number."""
    if not np.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def read_fingerprint(path: Path) -> dict[str, Any]:
    """What score-table wrote about the run: in the metadata of Parquet, or beside other formats."""
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
    """Folders without what they have in common; the last name of a single one."""
    real = [folder for folder in folders if folder != NONE]
    if len(real) < 2 or len({os.path.isabs(folder) for folder in real}) > 1:
        return [folder if folder == NONE else os.path.basename(folder) or folder for folder in folders]
    common = os.path.commonpath(real)
    return [folder if folder == NONE else os.path.relpath(folder, common or ".") for folder in folders]
