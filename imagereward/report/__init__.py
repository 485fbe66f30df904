"""Renders a table of scores as one self-contained HTML page: `write_report`."""

import os
from dataclasses import dataclass
from pathlib import Path

from imagereward.config import whole_number
from imagereward.errors import InputError
from imagereward.report.figures import agreements, judged_by
from imagereward.report.page import Findings, page
from imagereward.report.scores import Scores, read_scores
from imagereward.report.selection import disagreements, overall, prompts_to_show
from imagereward.report.thumbnails import Thumbnails
from imagereward.writing import check_free, write_text

__all__ = ["ReportSummary", "write_report"]

PROMPTS = 6
MOST_PROMPTS = 40  # their thumbnails take about 4 MB


@dataclass(frozen=True)
class ReportSummary:
    """The result of `write_report`: the page's path and counts.

    rows      rows of the table
    failed    rows with an error and no score
    missing   images that should be shown and cannot be read
    partly    rows with an error and the scores of some scorers
    """

    out: Path
    rows: int
    failed: int
    missing: int
    partly: int = 0

    def __str__(self) -> str:
        partly = f" ({self.partly} of them with some scores)" if self.partly else ""
        return (
            f"{self.out}: {self.rows} rows, {self.failed + self.partly} with an error{partly}, "
            f"{self.missing} images not shown"
        )


def write_report(
    scores: str | os.PathLike,
    out: str | os.PathLike,
    *,
    generator: str | None = None,
    by: str | None = None,
    images: str | os.PathLike | None = None,
    prompts: int = PROMPTS,
    overwrite: bool = False,
) -> ReportSummary:
    """Write a report on the table `scores` to the page `out`, which needs no other file and no network.

    scores     .parquet, .jsonl or .csv with columns score:NAME, as `score_table` writes them
    out        a path that ends in .html
    generator  the column with the generators' names; default: "generator", or else the image's folder
    by         the scorer that decides which images are best and worst; default: the first
    images     folder that relative image paths start at; default: the folder of the table
    prompts    number of prompts whose images are shown, 0 to 40; default 6
    overwrite  True replaces an existing page

    An image that cannot be read is replaced by a placeholder and counted. Raises InputError for a table
    without rows or scores and for an unknown column or scorer; OutputError for a page that exists or cannot
    be written.
    """
    target = Path(out)
    if target.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{target}: expected a name that ends in .html")
    target = check_free(target, overwrite)
    prompts = whole_number("prompts", prompts, 0, MOST_PROMPTS)
    table = read_scores(scores, generator)
    found = _findings(table, _scorer(table, by), prompts)
    place = Path(scores).expanduser()
    pictures = Thumbnails(images or (place if place.is_dir() else place.parent))
    write_text(target, page(found, pictures))
    return ReportSummary(target, len(table), table.failed, pictures.missing, table.partly)


def _findings(scores: Scores, by: int, prompts: int) -> Findings:
    agreeing = agreements(scores)
    return Findings(
        scores=scores,
        by=by,
        judged=[judged_by(scores, scorer) for scorer in range(len(scores.scorers))],
        agreements=agreeing,
        disagreements=disagreements(scores, agreeing),
        overall=overall(scores, by),
        prompts=prompts_to_show(scores, by, prompts),
    )


def _scorer(scores: Scores, by: str | None) -> int:
    if by is None:
        return 0
    if by not in scores.scorers:
        raise InputError(
            f"{scores.name} has no scores by {by!r}; it has those by {', '.join(scores.scorers)}"
        )
    return scores.scorers.index(by)
