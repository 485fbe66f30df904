"""Histograms and axes of reports as inline SVG and HTML. The SVG has no text, which would stretch with it."""

import math

from imagereward.report.figures import Interval
from imagereward.report.scores import as_number

HEIGHT = 24.0
TICKS = 5


def nice_ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """About `count` round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def place(value: float, low: float, high: float) -> float:
    """The position of a value between low (0) and high (100), in percent."""
    return 100 * (value - low) / (high - low)


def histogram(counts: list[int], low: float, high: float, mean: Interval, words: str) -> str:
    """An SVG histogram: `counts` over equal bins in [low, high], the mean as a line, its interval as a band.

    words   the description for screen readers
    """
    most, width = max(counts), 100 / len(counts)
    points = [f"M0 {HEIGHT}"]
    for index, count in enumerate(counts):
        y = HEIGHT * (1 - 0.94 * count / most)
        points.append(f"L{index * width:.2f} {y:.2f}H{(index + 1) * width:.2f}")
    points.append(f"V{HEIGHT}Z")
    grid = "".join(f"M{place(tick, low, high):.2f} 0V{HEIGHT}" for tick in nice_ticks(low, high))
    middle, band = place(mean.mean, low, high), ""
    if math.isfinite(mean.low):  # the interval of a few prompts may extend beyond the axis
        left, right = (min(100.0, max(0.0, place(value, low, high))) for value in (mean.low, mean.high))
        band = f'<rect class="band" x="{left:.2f}" y="0" width="{right - left:.2f}" height="{HEIGHT:g}"/>'
    return (
        f'<svg class="plot" viewBox="0 0 100 {HEIGHT:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{words}"><path class="grid" d="{grid}"/><path class="area" d="{"".join(points)}"/>'
        f'{band}<path class="mean" d="M{middle:.2f} 0V{HEIGHT}"/></svg>'
    )


def axis(low: float, high: float) -> str:
    """The axis labels under a column of histograms."""
    digits = max(0, -math.floor(math.log10((high - low) / TICKS)))
    labels = "".join(
        f'<span style="left:{place(tick, low, high):.2f}%">{as_number(tick, digits)}</span>'
        for tick in nice_ticks(low, high)
    )
    return f'<div class="axis" aria-hidden="true">{labels}</div>'
