"""Rows of figures and names as aligned text."""

from typing import Any


def table(rows: list[dict[str, Any]]) -> str:
    """One line a row under a line of keys; numbers to the right with four decimals, text to the left."""
    heads = list(rows[0])
    cells = [[f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells)]
    right = [isinstance(value, (int, float)) for value in rows[0].values()]
    lines = [
        "  ".join(text.rjust(w) if r else text.ljust(w) for text, w, r in zip(line, widths, right))
        for line in (heads, *cells)
    ]
    return "\n".join(line.rstrip() for line in lines)
