"""Evaluates results/MODEL/ of the folder layout: a record an image, means with intervals, and a page."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from imagereward.agreement.intervals import mean_interval
from imagereward.errors import ImageRewardError, InputError
from imagereward.inpainting.layout import RESULTS, LayoutRow, read_layout, results_of
from imagereward.inpainting.measures import (
    MOST_PSNR,
    OUTSIDE,
    open_painted,
    open_scorers,
    outside,
    said,
    scores_of,
    torchmetrics_functional,
)
from imagereward.pages import render
from imagereward.scoring.api import PairScorer
from imagereward.scoring.ranking import thumbnail
from imagereward.writing import write_text

FIRST = ("model", "name", "prompt", "mask_share")
DETAILS, SUMMARY, PAGE = "details.csv", "summary.csv", "results.html"


@dataclass(frozen=True)
class Results:
    """The scores of every model's image of every row.

    folder    of the layout
    rows      of originals, masks and prompts
    models    in the order of their names
    measures  names of the scores
    records   a dict for each model and row: `FIRST`, the measures (NaN where there is none), and `error`
    """

    folder: Path
    rows: list[LayoutRow]
    models: list[str]
    measures: list[str]
    records: list[dict[str, Any]]

    def values(self, model: str, measure: str) -> np.ndarray:
        """[M] of a model, in the order of `rows`; NaN where there is none."""
        return np.array([each[measure] for each in self.records if each["model"] == model], float)

    def summary(self) -> list[dict[str, Any]]:
        """A dict for each model and measure, with 95 % intervals over the images that have a value.

        "mean", "low", "high"; "count" of images; and, for every model but the first, "difference" from the
        first with its interval "difference low" and "difference high", over the images that both have.
        A PSNR above `MOST_PSNR`, 54.15 dB, counts as that, also the infinite one of equal pixels.
        """
        found = []
        for model in self.models:
            for measure in self.measures:
                values, first = (self._summed(name, measure) for name in (model, self.models[0]))
                there = values[np.isfinite(values)]
                line: dict[str, Any] = {"model": model, "measure": measure, "count": len(there)}
                line |= dict(zip(("mean", "low", "high"), _interval(there), strict=True))
                both = np.isfinite(values) & np.isfinite(first)
                paired = values[both] - first[both]
                names = ("difference", "difference low", "difference high")
                none = (math.nan,) * 3
                line |= dict(zip(names, none if model == self.models[0] else _interval(paired), strict=True))
                found.append(line)
        return found

    def _summed(self, model: str, measure: str) -> np.ndarray:
        values = self.values(model, measure)
        return np.minimum(values, MOST_PSNR) if measure == "psnr" else values


def evaluate_results(
    folder: str | os.PathLike,
    scorers: Sequence[str] | Mapping[str, PairScorer],
    *,
    measures: Sequence[str] = ("mse", "psnr"),
    device: str | None = None,
    progress: bool = True,
) -> Results:
    """Score originals/, masks/, prompts/ and results/MODEL/ of a folder.

    scorers    names as `open_reward` takes them: CLIP, inside(CLIP), boundary, preservation ...; or rewards
    measures   of `measures.OUTSIDE`

    A result that is missing, unreadable or of other proportions has the reason in `error`, and NaN; a scorer
    that gives an image no score has NaN for it alone, and the reason in `error` too.

    Raises InputError for a layout with faults, and for a folder without results.
    """
    folder = Path(folder).expanduser()
    rows, results = read_layout(folder), results_of(folder)
    if not results:
        raise InputError(f"{folder / RESULTS} holds no folder: expected one with images for each model")
    opened = dict(scorers) if isinstance(scorers, Mapping) else open_scorers(scorers, device)
    names = [*opened, *measures]
    if unknown := [name for name in measures if name not in OUTSIDE]:
        raise InputError(f"measure {unknown[0]!r}: expected one of {', '.join(OUTSIDE)}")
    if measures:
        torchmetrics_functional()  # MissingExtraError once, and not in every record
    records = []
    for model, row in tqdm(
        [(model, row) for model in results for row in rows], "scoring", unit="image", disable=not progress
    ):
        record: dict[str, Any] = {"model": model, "name": row.name, "prompt": row.prompt}
        record |= dict.fromkeys(("mask_share", *names), math.nan) | {"error": ""}
        try:
            if row.name not in results[model]:
                raise InputError(f"{folder / RESULTS / model} has no image {row.name}")
            painted = open_painted(row.prompt, results[model][row.name], row.image, row.mask, row.where)
            record["mask_share"] = float(painted.mask.mean())
            record |= outside(painted, measures) if measures else {}
            scores, causes = scores_of(painted, opened)
            record |= scores | {"error": said(causes)}
        except ImageRewardError as error:
            record["error"] = f"{type(error).__name__}: {error}"
        records.append(record)
    return Results(folder, rows, list(results), names, records)


def write_results(results: Results, out: Path, most: int = 40) -> list[Path]:
    """Write details.csv, summary.csv and a page with the first `most` rows' pictures; returns their paths."""
    tables = {DETAILS: results.records, SUMMARY: results.summary()}
    paths = [write_text(out / name, as_csv(rows)) for name, rows in tables.items()]
    return [*paths, write_text(out / PAGE, page(results, most))]


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Records as CSV; an empty cell stands for NaN."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if _is_nan(value) else value for name, value in row.items()})
    return text.getvalue()


def page(results: Results, most: int = 40) -> str:
    """An HTML page without external files: the summary, then original, mask and every model's image.

    most  rows that are shown with their images
    """
    rows = [{"prompt": row.prompt, "figures": _figures(results, row)} for row in results.rows[:most]]
    return render("inpainting.html", results=results, summary=results.summary(), rows=rows)


def _figures(results: Results, row: LayoutRow) -> list[dict[str, Any]]:
    """The row's original and mask, and every model's image with its scores, or with the reason for none."""
    figures = [_figure(row.image, "original"), _figure(row.mask, "mask")]
    for record in results.records:
        if record["name"] == row.name:
            path = results_of(results.folder)[record["model"]].get(row.name)
            scores = {name: record[name] for name in results.measures if not _is_nan(record[name])}
            figures.append(_figure(path, record["model"], scores, "" if scores else record["error"]))
    return figures


def _figure(
    path: Path | None, name: str, scores: Mapping[str, float] | None = None, error: str = ""
) -> dict[str, Any]:
    try:
        picture = thumbnail(path) if path else ""
    except ImageRewardError:
        picture = ""
    return {"name": name, "picture": picture, "scores": scores or {}, "error": error}


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    return mean_interval(values) if len(values) else (math.nan, math.nan, math.nan)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
