"""Finds Chromium, its command-line flags, and checks that a page in it is readable."""

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
    """Assert that the page follows the colour `scheme`, "light" or "dark", with WCAG's AAA contrast of 7."""
    colours = page.evaluate(
        """['color', 'backgroundColor'].map((name) =>
            getComputedStyle(document.body)[name].match(/[\\d.]+/g).map(Number))"""
    )
    text, ground = (_luminance(colour[:3]) for colour in colours)
    assert (ground > text) == (scheme == "light")
    assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) > 7


def _luminance(rgb: list[float]) -> float:
    """WCAG's relative luminance, in [0, 1], of 8-bit sRGB."""
    linear = [value / 255 / 12.92 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in rgb]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear))
