"""Shapes of a report's histograms and axes, as SVG paths and positions in percent."""

import math
from typing import NamedTuple

from imagereward.report.figures import Interval
from imagereward.report.scores import as_number

HEIGHT = 24  # of a histogram that is 100 wide
TICKS = 5


class Histogram(NamedTuple):
    """The shapes of a histogram in a box of 100 by `HEIGHT`, without text, which would stretch with it.

    grid   path of the lines at the axis' ticks
    area   path around the bars
    mean   path of the line at the mean
    band   (left, width) of the mean's interval; None without one
    """

    grid: str
    area: str
    mean: str
    band: tuple[str, str] | None


def nice_ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """About `count` round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def place(value: float, low: float, high: float) -> float:
    """The position of a value between low (0) and high (100), in percent."""
    return 100 * (value - low) / (high - low)


def histogram(counts: list[int], low: float, high: float, mean: Interval) -> Histogram:
    """The histogram of `counts` over equal bins in [low, high]."""
    most, width = max(counts), 100 / len(counts)
    points = [f"M0 {HEIGHT}"]
    for index, count in enumerate(counts):
        y = HEIGHT * (1 - 0.94 * count / most)
        points.append(f"L{index * width:.2f} {y:.2f}H{(index + 1) * width:.2f}")
    points.append(f"V{HEIGHT}Z")
    grid = "".join(f"M{place(tick, low, high):.2f} 0V{HEIGHT}" for tick in nice_ticks(low, high))
    band = None
    if math.isfinite(mean.low):  # the interval of a few prompts may extend beyond the axis
        left, right = (min(100.0, max(0.0, place(value, low, high))) for value in (mean.low, mean.high))
        band = f"{left:.2f}", f"{right - left:.2f}"
    return Histogram(grid, "".join(points), f"M{place(mean.mean, low, high):.2f} 0V{HEIGHT}", band)


def axis(low: float, high: float) -> list[tuple[str, str]]:
    """(position in percent, label) of the ticks under a column of histograms."""
    digits = max(0, -math.floor(math.log10((high - low) / TICKS)))
    return [(f"{place(tick, low, high):.2f}", as_number(tick, digits)) for tick in nice_ticks(low, high)]
