"""A griffe extension: columns in docstrings become Markdown lists.

The project's docstrings describe parameters in two columns, a name and its meaning, at least two spaces
apart. Markdown would join such lines to one paragraph.
"""

import re
from typing import Any

from griffe import Extension, Object

ENTRY = re.compile(r"(\S+(?: \S+)*?) {2,}(\S.*)")


class Columns(Extension):
    """Rewrites the docstring of every module, class and function."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe for each object that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = without_links(listed(obj.docstring.value))


def listed(docstring: str) -> str:
    """`docstring` with every paragraph in two columns as a Markdown list; other paragraphs stay."""
    return "\n\n".join(_as_list(each) or each for each in docstring.split("\n\n"))


def without_links(docstring: str) -> str:
    """`docstring` with two indices, as in scores[m][n], escaped: Markdown takes them for a link."""
    lines = (line if line.startswith("    ") else _escaped(line) for line in docstring.split("\n"))
    return "\n".join(lines)


def _escaped(line: str) -> str:
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(part if part.startswith("`") else part.replace("][", "]\\[") for part in parts)


def _as_list(paragraph: str) -> str | None:
    lines = paragraph.splitlines()
    first = next((at for at, line in enumerate(lines) if ENTRY.fullmatch(line)), None)
    if first is None or (first and lines[first - 1].startswith(" ")):
        return None
    items: list[str] = []
    for line in lines[first:]:
        if match := ENTRY.fullmatch(line):
            items.append(f"- `{match[1]}`: {match[2]}")
        elif line.startswith("  "):
            items[-1] += f" {line.strip()}"
        else:
            return None
    before = "\n".join(lines[:first])
    return "\n\n".join(part for part in (before, "\n".join(items)) if part)
