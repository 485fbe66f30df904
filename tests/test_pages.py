"""Pages: values are escaped, missing ones are errors, and one file has the colours of all pages."""

import re
from pathlib import Path

import jinja2
import pytest

from imagereward import pages
from imagereward.pages import cut, render

TEMPLATES = Path(pages.__file__).parent / "templates"
HOSTILE = "<script>alert(1)</script>&\"'"
INFO = {"title": HOSTILE, "version": "1", "summary": ""}


def test_values_are_escaped():
    page = render("endpoints.html", info=INFO, operations=[])
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;&#34;&#39;" in page


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="operations"):
        render("endpoints.html", info=INFO)


@pytest.mark.parametrize(("text", "expected"), [("abcd", "abcd"), ("abcde", "abc…"), (12345, "123…")])
def test_long_texts_are_cut(text, expected):
    assert cut(text, 4) == expected


def test_every_page_extends_the_base_and_only_the_base_names_colours():
    names = sorted(path.name for path in TEMPLATES.iterdir())
    assert len(names) == 13
    for name in names:
        text = (TEMPLATES / name).read_text("utf-8")
        if name != "base.css":
            assert not re.findall(r"#[0-9a-f]{3,6}\b|rgb\(|light-dark\(", re.sub(r"&#\w+;", "", text)), name
        if name.endswith(".html") and name not in ("base.html", "ranking.html", "report_sections.html"):
            assert text.startswith('{% extends "base.html" %}'), name
