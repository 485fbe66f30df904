"""Renders tables, cards and figures of a report as HTML; `text` escapes all values from the table."""

import html
import math

from imagereward.report.charts import axis, histogram
from imagereward.report.figures import MOST_COMPARED, Interval, ScorerCorrelation, ScorerFigures
from imagereward.report.scores import Scores, as_number
from imagereward.report.selection import Disagreement, Ends
from imagereward.report.thumbnails import Thumbnails

LONGEST_TEXT = 300
LONGEST_NAME = 60
# Strongest tint of a cell, in percent: text on it keeps a contrast above 4.5.
STRONGEST = 45


def text(value: object, most: int = LONGEST_TEXT) -> str:
    """A value as escaped HTML text of at most `most` characters."""
    words = str(value)
    return html.escape(words if len(words) <= most else words[: most - 1] + "…")


def name(value: str) -> str:
    """The name of a generator or scorer, in <bdi>: right-to-left names must not reorder the line."""
    return f"<bdi>{text(value, LONGEST_NAME)}</bdi>"


def spread_table(scores: Scores, judged: ScorerFigures) -> str:
    """A table with each generator's histogram on a common axis, and its mean with interval."""
    digits = scores.digits[judged.scorer]
    rows = "".join(
        f'<tr><th scope="row">{name(scores.generators[spread.generator])}'
        f"<small>{spread.mean.count:,} scores</small></th>"
        f"<td>{_plot(scores, judged, spread, digits)}</td>"
        f"<td><b>{as_number(spread.mean.mean, digits)}</b>"
        f"<small>{between(spread.mean, digits)}</small></td></tr>"
        for spread in judged.spreads
    )
    return (
        f'<div class="card"><table class="spreads"><caption>{name(scores.scorers[judged.scorer])}</caption>'
        '<thead><tr><th scope="col">Generator</th><th scope="col">Scores</th>'
        f'<th scope="col">Mean, 95&nbsp;%</th></tr></thead><tbody>{rows}'
        f"<tr><td></td><td>{axis(judged.low, judged.high)}</td><td></td></tr></tbody></table></div>"
    )


def _plot(scores: Scores, judged: ScorerFigures, spread, digits: int) -> str:
    low, high = (f"{value:.{digits}f}" for value in (judged.low, judged.high))
    generator = text(scores.generators[spread.generator], LONGEST_NAME)
    words = f"Scores of {generator}: mean {spread.mean.mean:.{digits}f}, all between {low} and {high}"
    return histogram(spread.histogram, judged.low, judged.high, spread.mean, words)


def between(interval: Interval, digits: int) -> str:
    """An interval in words."""
    if math.isnan(interval.low):
        return "one prompt: no interval"
    return f"{as_number(interval.low, digits)} to {as_number(interval.high, digits)}"


def win_matrix(scores: Scores, judged: ScorerFigures) -> str:
    """A matrix with the win rates of the row's generator over the column's."""
    order = [spread.generator for spread in judged.spreads]
    head = "".join(f'<th scope="col">{name(scores.generators[generator])}</th>' for generator in order)
    rows = "".join(
        f'<tr><th scope="row">{name(scores.generators[a])}</th>'
        + "".join(_win(judged.wins.get((a, b))) if a != b else '<td class="none">–</td>' for b in order)
        + "</tr>"
        for a in order
    )
    return (
        f'<div class="card wide" tabindex="0"><table class="matrix"><caption>'
        f"{name(scores.scorers[judged.scorer])}</caption><thead><tr>"
        f'<th scope="col">row beats column</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _win(win: Interval | None) -> str:
    if win is None:
        return '<td class="none"><small>no shared prompt</small></td>'
    between = "one prompt" if math.isnan(win.low) else f"{100 * win.low:.0f}–{100 * win.high:.0f}"
    return f'<td style="{_tint(2 * win.mean - 1)}"><b>{win.mean:.0%}</b><small>{between}</small></td>'


def _tint(strength: float) -> str:
    """Style of a tint for a value in [-1, 1]; it is strongest from 0.625 on."""
    colour = "accent" if strength >= 0 else "warm"
    return f"--tint:var(--{colour});--much:{STRONGEST * min(1, 1.6 * abs(strength)):.0f}%"


def agreement_table(scores: Scores, agreements: list[ScorerCorrelation]) -> str:
    """A table with the rank correlations of every two scorers."""
    rows = "".join(
        f'<tr><th scope="row">{_both(scores, each.scorers)}</th>'
        f"<td>{as_number(each.spearman, 2)}</td><td>{as_number(each.kendall, 2)}</td>"
        + "".join(f"<td>{as_number(value, 2)}</td>" for value in (each.within or ())[:2])
        + ("" if each.within else "<td>–</td><td>–</td>")
        + "</tr>"
        for each in agreements
    )
    compared = max((each.within[2] for each in agreements if each.within), default=0)
    note = f"<small>Within prompts: means over {compared:,} of them.</small>" if compared else ""
    if compared == MOST_COMPARED:
        note = f"<small>Within prompts: means over {compared:,} of them, spread evenly over all.</small>"
    return (
        '<div class="card wide" tabindex="0"><table class="plain"><thead>'
        '<tr><td></td><th scope="colgroup" colspan="2">All images</th>'
        '<th scope="colgroup" colspan="2">Within prompts</th></tr>'
        '<tr><th scope="col">Scorers</th><th scope="col">Spearman</th><th scope="col">Kendall</th>'
        f'<th scope="col">Spearman</th><th scope="col">Kendall</th></tr></thead><tbody>{rows}</tbody></table>'
        f"{note}</div>"
    )


def _both(scores: Scores, pair: tuple[int, int]) -> str:
    return " and ".join(name(scores.scorers[scorer]) for scorer in pair)


def disagreement_card(scores: Scores, pictures: Thumbnails, found: Disagreement) -> str:
    """A card with images that one of two scorers ranks high and the other low."""
    first, second = found.scorers

    def figures(rows: list[int]) -> str:
        return "".join(figure(scores, pictures, row, _places(scores, found, row)) for row in rows)

    columns = (
        (first, second, figures(found.first_high)),
        (second, first, figures(found.second_high)),
    )
    return (
        '<div class="card ends">'
        + "".join(
            f"<div><h4>{name(scores.scorers[high])} high, {name(scores.scorers[low])} low</h4>"
            f'<div class="row" style="--columns:2">{content or "none"}</div></div>'
            for high, low, content in columns
        )
        + "</div>"
    )


def _places(scores: Scores, found: Disagreement, row: int) -> str:
    return "".join(
        f"<span>{name(scores.scorers[scorer])}: {scores.said(row, scorer)}, "
        f"above {found.above_N_2[row, side]:.0%}</span>"
        for side, scorer in enumerate(found.scorers)
    )


def ends_card(scores: Scores, pictures: Thumbnails, ends: Ends, by: int, with_prompts: bool) -> str:
    """A card with the best and the worst images by the scorer `by`."""
    columns = min(3, max(2, len(ends.best)))

    def figures(rows: list[int]) -> str:
        return "".join(figure(scores, pictures, row, _score(scores, row, by), with_prompts) for row in rows)

    return (
        '<div class="card ends">'
        + "".join(
            f'<div><h4>{word}</h4><div class="row" style="--columns:{columns}">{figures(rows)}</div></div>'
            for word, rows in (("Best", ends.best), ("Worst", ends.worst))
        )
        + "</div>"
    )


def _score(scores: Scores, row: int, by: int) -> str:
    others = "".join(
        f"<span>{name(scorer)}: {scores.said(row, place)}</span>"
        for place, scorer in enumerate(scores.scorers)
        if place != by
    )
    return f"<b>{scores.said(row, by)}</b>{others}"


def figure(scores: Scores, pictures: Thumbnails, row: int, figures: str, with_prompt: bool = True) -> str:
    """One image with its caption: `figures`, generator and, `with_prompt`, the prompt."""
    image, prompt = scores.images[row], int(scores.prompt_N[row])
    picture = pictures[image]
    label = text(image or f"row {row}", LONGEST_NAME * 2)
    words = text(scores.prompts[prompt]) if prompt >= 0 else "no prompt"
    shown = (
        f'<img src="{picture.url}" width="{picture.width}" height="{picture.height}" '
        f'alt="{label}, for: {words}">'
        if picture.url
        else f'<div class="absent" role="img" aria-label="{label}: {picture.missing}">{picture.missing}</div>'
    )
    generator = scores.generators[scores.generator_N[row]] if len(scores.generators) > 1 else ""
    lines = f"<span>{name(generator)}</span>" if generator else ""
    if with_prompt:
        lines += f'<span class="cut" title="{words}"><bdi>{words}</bdi></span>'
    return f"<figure>{shown}<figcaption>{figures}{lines}</figcaption></figure>"
