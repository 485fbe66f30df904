"""Formats rows of numbers and names as a table of aligned text."""

from typing import Any


def table(rows: list[dict[str, Any]]) -> str:
    """Lines of text: the keys, then a line for each row; numbers right-aligned with four decimals."""
    heads = list(rows[0])
    cells = [[f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells)]
    right = [isinstance(value, (int, float)) for value in rows[0].values()]
    lines = [
        "  ".join(text.rjust(w) if r else text.ljust(w) for text, w, r in zip(line, widths, right))
        for line in (heads, *cells)
    ]
    return "\n".join(line.rstrip() for line in lines)
