"""Comparison: the images and rewards of two generators; differences with intervals, and an HTML page."""

import html
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from imagereward.agreement.intervals import mean_interval
from imagereward.images.reading import to_pil
from imagereward.scoring.ranking import thumbnail


@dataclass(frozen=True)
class Comparison:
    """The images and rewards of two generators, for M prompts and K seeds.

    prompts    the M prompts
    before     {reward: [M, K]} of the base; "sum" is the weighted sum of several rewards
    after      the same of the tuned generator
    diversity  (base, tuned): mean distance between a prompt's images, see `diversity`; None for one seed
    images     (base, tuned): [M, K, 3, H, W] in [0, 1], on the CPU
    """

    prompts: list[str]
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]
    diversity: tuple[float, float] | None
    images: tuple[torch.Tensor, torch.Tensor] = field(repr=False)

    def rows(self) -> list[dict[str, Any]]:
        """A dict for each reward, with 95 % intervals over prompts.

        "base" and "tuned" are means, and "base ±" and "tuned ±" half the width of the means' intervals.
        "difference" is tuned - base, and "low" and "high" bound it. "in base deviations" is the difference
        in standard deviations of the base's rewards. "win rate" is in 0..1; see `win_rate`.
        """
        rows = []
        for name, before in self.before.items():
            after = self.after[name]
            low, high = paired_interval(before.mean(1), after.mean(1))
            rows.append(
                {
                    "reward": name,
                    "base": float(before.mean()),
                    "base ±": _half_interval(before),
                    "tuned": float(after.mean()),
                    "tuned ±": _half_interval(after),
                    "difference": float((after - before).mean()),
                    "low": low,
                    "high": high,
                    "in base deviations": float((after - before).mean() / max(before.std(), 1e-12)),
                    "win rate": win_rate(before, after),
                }
            )
        return rows


def paired_interval(before_M: np.ndarray, after_M: np.ndarray) -> tuple[float, float]:
    """(low, high): 95 % interval of the mean of after - before over M prompts, by Student's t.

    (nan, nan) for one prompt. Exact for any number of normally distributed differences; see
    `agreement/intervals.py`.
    """
    _, low, high = mean_interval(np.asarray(after_M, float) - np.asarray(before_M, float))
    return low, high


def _half_interval(rewards_M_K: np.ndarray) -> float:
    _, low, high = mean_interval(rewards_M_K.mean(1))
    return (high - low) / 2


def win_rate(before: np.ndarray, after: np.ndarray) -> float:
    """Share 0..1 of (prompt, seed) where the tuned image has the higher reward; equal rewards count half."""
    return float((after > before).mean() + (after == before).mean() / 2)


_STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem; max-width: 60rem;
       color: #1d2430; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1rem; margin: 1.6rem 0 .4rem }
table { border-collapse: collapse } td, th { padding: .2rem .7rem; text-align: right }
tr { border-bottom: 1px solid #d9dee7 }
th:first-child, td:first-child { text-align: left }
.pair { display: inline-flex; gap: .3rem; margin: 0 .8rem .6rem 0; break-inside: avoid }
figure { margin: 0; width: 10rem } img { width: 100%; display: block }
figcaption { font-size: .8rem; color: #4a5568 }
@media (prefers-color-scheme: dark) {
  body { color: #e4e8ef; background: #14181f } figcaption { color: #a8b2c1 } tr { border-color: #333c4a } }
"""


def page(comparison: Comparison, names: tuple[str, str] = ("base", "tuned")) -> str:
    """An HTML page without external files: the numbers, and each pair of images with their rewards.

    names  how the page calls the base and the tuned generator
    """
    rows = comparison.rows()
    heads = "".join(f"<th>{html.escape(key)}</th>" for key in rows[0])
    lines = "".join(
        f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row.values())}</tr>" for row in rows
    )
    spread = comparison.diversity
    words = "<p>Diversity, the mean distance between a prompt's images: "
    words += f"{spread[0]:.3f} before, {spread[1]:.3f} after.</p>" if spread else ""
    sections = "".join(_section(comparison, at, names) for at in range(len(comparison.prompts)))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(names[0])} and {html.escape(names[1])}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(names[0])} and {html.escape(names[1])}</h1>
<p>{len(comparison.prompts)} prompts, the same noise for both. Low and high bound the difference's mean with
95 % confidence, over prompts (Student's t); ± is half of such an interval of a mean.</p>
<table><tr>{heads}</tr>{lines}</table>
{words if spread else ""}{sections}</body></html>
"""


def _section(comparison: Comparison, at: int, names: tuple[str, str]) -> str:
    pairs = []
    for seed in range(comparison.images[0].shape[1]):
        figures = "".join(
            f'<figure><img src="{thumbnail(to_pil(images[at, seed]))}" alt="{html.escape(name)}">'
            f"<figcaption>{html.escape(name)}<br>{_rewards(scores, at, seed)}</figcaption></figure>"
            for images, name, scores in zip(
                comparison.images, names, (comparison.before, comparison.after), strict=True
            )
        )
        pairs.append(f'<div class="pair">{figures}</div>')
    return f"<h2>{html.escape(comparison.prompts[at])}</h2>{''.join(pairs)}"


def _rewards(scores: dict[str, np.ndarray], at: int, seed: int) -> str:
    return "<br>".join(f"{html.escape(name)} {values[at, seed]:+.3f}" for name, values in scores.items())


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else html.escape(str(value))
