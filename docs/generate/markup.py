"""Markdown: tables, and text for their cells."""

import html
import re
from collections.abc import Iterable, Sequence


def cell(text: object) -> str:
    """Text on one line, with the characters of Markdown, HTML and tables escaped outside of code spans."""
    parts = re.split(r"(`[^`]*`)", " ".join(str(text).split()))
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def code(text: object) -> str:
    """A code span for a cell of a table; nothing for no text."""
    return f"`{text}`" if str(text) else ""


def _escaped(text: str) -> str:
    return html.escape(text, quote=False).replace("[", "\\[").replace("|", "\\|").replace("*", "\\*")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. Cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
