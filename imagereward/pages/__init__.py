"""Renders HTML pages from templates that share one base page and one palette: `render`."""

from functools import cache
from typing import Any

import jinja2

LONGEST_TEXT = 300


def render(template: str, **values: Any) -> str:
    """The text of `templates/TEMPLATE` with these values, which are escaped as HTML.

    A name that the template uses and that has no value is an error of jinja2, not an empty text.
    """
    return _environment().get_template(template).render(**values)


def cut(value: object, most: int = LONGEST_TEXT) -> str:
    """The value as text of at most `most` characters; a longer one ends in "…"."""
    text = str(value)
    return text if len(text) <= most else text[: most - 1] + "…"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__name__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cut"] = cut
    return environment
