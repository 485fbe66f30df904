"""Assembles the HTML page of a report from its sections."""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from imagereward.report.figures import LEVEL, MOST_GENERATORS, ScorerCorrelation, ScorerFigures
from imagereward.report.scores import Scores, as_number
from imagereward.report.sections import (
    agreement_table,
    disagreement_card,
    ends_card,
    name,
    spread_table,
    text,
    win_matrix,
)
from imagereward.report.selection import Disagreement, Ends
from imagereward.report.thumbnails import Thumbnails

# Content-Security-Policy: no scripts and no network, so that a hostile prompt or path is harmless.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
MOST_ERRORS = 10
LONGEST_VALUE = 200


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
    sections = [
        ("distributions", "Scores", _distributions(found)),
        ("wins", "Who beats whom", _wins(found)),
        ("images", "Best and worst images", _overall(found, pictures)),
        ("prompts", "Prompt by prompt", _by_prompt(found, pictures)),
        ("agreement", "Do the scorers agree?", _agreement(found, pictures)),
        ("errors", "Errors", _errors(found.scores)),
        ("run", "How these scores were made", _fingerprint(found.scores.fingerprint)),
    ]
    there = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in there)
    body = "".join(
        f'<section id="{key}"><h2>{title}</h2>{content}</section>' for key, title, content in there
    )
    style = resources.files("imagereward").joinpath("report/page.css").read_text(encoding="utf-8")
    title = f"Scores in {text(found.scores.name)}"
    # `_numbers` counts missing images, so it runs after the sections have requested their thumbnails.
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{title}</title>
<style>{style}</style></head><body>
<header><h1>{title}</h1>{_numbers(found.scores, pictures)}{_lead(found)}
<nav aria-label="Sections">{links}</nav></header>
<main>{body}</main></body></html>
"""


def _numbers(scores: Scores, pictures: Thumbnails) -> str:
    unscored = int(np.isnan(scores.scores_N_S).any(1).sum())
    numbers = [
        ("rows", len(scores), False),
        ("prompts", len(scores.prompts), False),
        ("generators", len(scores.generators), False),
        ("scorers", len(scores.scorers), False),
        ("without a score", unscored, unscored > 0),
        ("prompt cut", scores.truncated, False),
    ]
    if pictures.missing:
        numbers.append(("images not shown", pictures.missing, True))
    cells = "".join(
        f"<div{' class=fault' if fault else ''}><dt>{label}</dt><dd>{count:,}</dd></div>"
        for label, count, fault in numbers
    )
    return f'<dl class="numbers">{cells}</dl>'


def _lead(found: Findings) -> str:
    """The best generator by each scorer, one sentence each, and its win rate over the second."""
    lines = []
    for judged in found.judged:
        if len(judged.spreads) < 2:
            continue
        first, second = judged.spreads[:2]
        digits = found.scores.digits[judged.scorer]
        line = (
            f"{name(found.scores.scorers[judged.scorer])}: "
            f"<b>{name(found.scores.generators[first.generator])}</b> has the highest mean, "
            f"{as_number(first.mean.mean, digits)}"
        )
        win = judged.wins.get((first.generator, second.generator))
        if win:
            doubt = "" if win.low > 0.5 or win.high < 0.5 else ", which may be chance"
            line += (
                f", and beats {name(found.scores.generators[second.generator])}, the next, {win.mean:.0%}"
                f" of the time on the same prompts{doubt}"
            )
        lines.append(f"<li>{line}.</li>")
    return f'<ul class="card lead">{"".join(lines)}</ul>' if lines else ""


def _distributions(found: Findings) -> str:
    scores = found.scores
    several = len(scores.prompts) > 1
    words = (
        "<p>Every generator’s scores on one axis, best mean first. The line is the mean, the band its "
        f"{LEVEL:.0%} interval: how far it could move for other {'prompts' if several else 'images'} like "
        f"these (Student’s t). What tells generators apart: {text(scores.grouped_by)}."
    )
    left_out = len(scores.generators) - MOST_GENERATORS
    words += f" The {MOST_GENERATORS} with most rows are shown, {left_out:,} are not." if left_out > 0 else ""
    return f"{words}</p>{''.join(spread_table(scores, judged) for judged in found.judged if judged.spreads)}"


def _wins(found: Findings) -> str:
    tables = "".join(win_matrix(found.scores, judged) for judged in found.judged if judged.wins)
    if not tables:
        return ""
    least = 9 + 5 * min(len(found.scores.generators), MOST_GENERATORS)
    return (
        "<p>The chance that an image by the row’s generator scores above one by the column’s for the same "
        f"prompt, averaged over the prompts that both drew; equal scores count half. Below it its "
        f"{LEVEL:.0%} interval over prompts, in percent.</p>"
        f'<div class="matrices" style="--least:{least}rem">{tables}</div>'
    )


def _agreement(found: Findings, pictures: Thumbnails) -> str:
    if not found.agreements:
        return ""
    cards = "".join(
        f"<h3>Where {name(found.scores.scorers[each.scorers[0]])} and "
        f"{name(found.scores.scorers[each.scorers[1]])} disagree most</h3>"
        + disagreement_card(found.scores, pictures, each)
        for each in found.disagreements
    )
    return (
        "<p>Rank correlation: 1 is the same order, 0 no relation, −1 the opposite. Within prompts is what "
        "matters for choosing among images of one prompt.</p>"
        f"{agreement_table(found.scores, found.agreements)}{cards}"
    )


def _overall(found: Findings, pictures: Thumbnails) -> str:
    return (
        f"<p>Of all images, by {name(found.scores.scorers[found.by])}; "
        "one a prompt, where there are prompts enough.</p>"
        + ends_card(found.scores, pictures, found.overall, found.by, with_prompts=True)
    )


def _by_prompt(found: Findings, pictures: Thumbnails) -> str:
    if not found.prompts:
        return ""
    cards = "".join(
        f"<h3><bdi>{text(found.scores.prompts[prompt])}</bdi></h3>"
        + ends_card(found.scores, pictures, ends, found.by, with_prompts=False)
        for prompt, ends in found.prompts
    )
    return (
        f"<p>The prompts whose images differ most, by {name(found.scores.scorers[found.by])}: there, "
        f"choosing among images pays most.</p>{cards}"
    )


def _errors(scores: Scores) -> str:
    if not scores.errors:
        return ""
    lines = "".join(
        f"<li>row {row}: {text(scores.images[row] or 'no image')}: {text(reason)}</li>"
        for row, reason in scores.errors[:MOST_ERRORS]
    )
    more = len(scores.errors) - MOST_ERRORS
    rest = f"<p>and {more:,} more.</p>" if more > 0 else ""
    count = len(scores.errors)
    return (
        f"<p>{count:,} of {len(scores):,} rows could not be scored, and are in no figure above.</p>"
        f'<div class="card"><ul class="errors">{lines}</ul>{rest}</div>'
    )


def _fingerprint(fingerprint: dict[str, Any]) -> str:
    if not fingerprint:
        return "<p>The table does not say: it has no fingerprint of the run that wrote it.</p>"
    rows = "".join(
        f'<tr><th scope="row">{text(key)}</th><td>{text(_value(value), LONGEST_VALUE)}</td></tr>'
        for key, value in fingerprint.items()
    )
    return f'<div class="card breaks"><table class="plain facts"><tbody>{rows}</tbody></table></div>'


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_value(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return value if isinstance(value, str) else json.dumps(value)
