"""Renders the HTML page of a report from its findings."""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagereward.pages import render
from imagereward.report import charts
from imagereward.report.figures import (
    LEVEL,
    MOST_COMPARED,
    MOST_GENERATORS,
    Interval,
    ScorerCorrelation,
    ScorerFigures,
)
from imagereward.report.scores import Scores, as_number
from imagereward.report.selection import Disagreement, Ends
from imagereward.report.thumbnails import Thumbnails

MOST_ERRORS = 10
# Strongest tint of a cell, in percent: text on it keeps a contrast above 4.5.
STRONGEST = 45


@dataclass(frozen=True)
class Findings:
    """The content of a page.

    by              index of the scorer that orders images
    judged          figures of each scorer
    agreements      correlations of pairs of scorers, the lowest first
    disagreements   images on which pairs of scorers disagree most
    overall         the best and the worst of all images
    prompts         (prompt index, its best and worst images)
    """

    scores: Scores
    by: int
    judged: list[ScorerFigures]
    agreements: list[ScorerCorrelation]
    disagreements: list[Disagreement]
    overall: Ends
    prompts: list[tuple[int, Ends]]


def page(found: Findings, pictures: Thumbnails) -> str:
    """The complete HTML page, with styles and thumbnails inside."""
    return render(
        "report.html",
        found=found,
        scores=found.scores,
        pictures=pictures,
        numbers=lambda: _numbers(found.scores, pictures),
        compared=max((each.within[2] for each in found.agreements if each.within), default=0),
        number=as_number,
        fixed=lambda value, digits: f"{value:.{digits}f}",
        percent="{:.0%}".format,
        percent_range=_percent_range,
        between=_between,
        tint=_tint,
        as_words=_as_words,
        histogram=charts.histogram,
        axis=charts.axis,
        height=charts.HEIGHT,
        level=LEVEL,
        most_compared=MOST_COMPARED,
        most_errors=MOST_ERRORS,
        most_generators=MOST_GENERATORS,
    )


def _numbers(scores: Scores, pictures: Thumbnails) -> list[tuple[str, int, bool]]:
    """(label, count, whether it is a fault) of the numbers at the top."""
    unscored = int(np.isnan(scores.scores_N_S).all(1).sum())
    partly = int(np.isnan(scores.scores_N_S).any(1).sum()) - unscored
    numbers = [
        ("rows", len(scores), False),
        ("prompts", len(scores.prompts), False),
        ("generators", len(scores.generators), False),
        ("scorers", len(scores.scorers), False),
        ("without a score", unscored, unscored > 0),
        ("prompt cut", scores.truncated, False),
    ]
    rare = [("partly scored", partly, True), ("images not shown", pictures.missing, True)]
    return numbers + [each for each in rare if each[1]]


def _between(interval: Interval, digits: int) -> str:
    """An interval in words."""
    if math.isnan(interval.low):
        return "one prompt: no interval"
    return f"{as_number(interval.low, digits)} to {as_number(interval.high, digits)}"


def _percent_range(win: Interval) -> str:
    """The interval of a win rate, in percent."""
    return "one prompt" if math.isnan(win.low) else f"{100 * win.low:.0f}–{100 * win.high:.0f}"


def _tint(strength: float) -> str:
    """Style of a tint for a value in [-1, 1]; it is strongest from 0.625 on."""
    colour = "accent" if strength >= 0 else "warm"
    return f"--tint:var(--{colour});--much:{STRONGEST * min(1, 1.6 * abs(strength)):.0f}%"


def _as_words(value: Any) -> str:
    """A value of the fingerprint as text: tables and lists with commas, numbers as in JSON."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_as_words(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_as_words, value))
    return value if isinstance(value, str) else json.dumps(value)
