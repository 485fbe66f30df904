"""A real browser: where it is, how it starts, and whether a page in it can be read."""

import shutil

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def assert_readable(page, scheme: str) -> None:
    """The page is as light or dark as asked, and its text has WCAG's strictest contrast."""
    colours = page.evaluate(
        """['color', 'backgroundColor'].map((name) =>
            getComputedStyle(document.body)[name].match(/[\\d.]+/g).map(Number))"""
    )
    text, ground = (_luminance(colour[:3]) for colour in colours)
    assert (ground > text) == (scheme == "light")
    assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) > 7


def _luminance(rgb: list[float]) -> float:
    """WCAG's relative luminance of 8-bit sRGB."""
    linear = [value / 255 / 12.92 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in rgb]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear))
