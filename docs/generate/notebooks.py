"""Notebooks as Markdown, so that the site shows them without a converter's scripts."""

from pathlib import Path

import nbformat


def page(path: Path) -> str:
    """Markdown of a notebook's cells, without outputs, and a link to the file itself."""
    cells = nbformat.read(path, as_version=4).cells
    parts = [
        each.source if each.cell_type == "markdown" else f"```python\n{each.source}\n```" for each in cells
    ]
    return "\n\n".join([parts[0], f"[Download this notebook]({path.name})", *parts[1:]])
