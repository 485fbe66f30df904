"""Pieces of Markdown: tables, and text that stands in a cell of one."""

import html
import re
from collections.abc import Iterable, Sequence


def cell(text: object) -> str:
    """Text on one line, with what a table or HTML would take for its own escaped outside of code spans."""
    parts = re.split(r"(`[^`]*`)", " ".join(str(text).split()))
    escaped = (part if part.startswith("`") else html.escape(part, quote=False) for part in parts)
    return "".join(escaped).replace("|", "\\|")


def code(text: object) -> str:
    """A code span for a cell of a table; nothing for no text."""
    return f"`{text}`".replace("|", "\\|") if str(text) else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. Cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
