"""Hooks of mkdocs: fill pages from code, add pages for notebooks and files of the repository, mend links.

The text between `<!-- generated: NAME -->` and `<!-- /generated -->` in a page, which says where to look in a
clone, is replaced by that of `FILLED[NAME]`. Pages without a file in
docs/ are made at each build and never written into the repository.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

import api
import commands
import notebooks
import recipes
import results
import scorers
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FILLED = {
    "api": api.page,
    "benchmarks": results.page,
    "commands": commands.page,
    "recipes": recipes.page,
    "scorers": scorers.page,
}
# Files of the repository that are pages of the site -> their place in it.
REPOSITORY_PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "imagereward/assets/ImageReward-tiny/README.md": "imagereward-tiny.md",
}
MARK = re.compile(r"<!-- generated: (\S+) -->.*?<!-- /generated -->", re.DOTALL)
LINK = re.compile(r"(?<![`\w])\[([^\[\]]+)\]\(([^)\s#]*)(#[^)\s]*)?\)")
FENCED = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> Any:
    """Fill the lists of pages that follow from the code into the navigation."""
    for entry in config.nav:
        for title, pages in entry.items():
            if title == "Recipes reference":
                pages += [{name: f"reference/recipes/{name}.md"} for name in recipes.family_pages()]
            if title == "API reference":
                pages += [{name: f"reference/api/{name}.md"} for name in api.room_pages()]
    config.watch += [str(ROOT / "imagereward"), str(ROOT / "benchmarks/results")]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that no file in docs/ holds."""
    pages = {f"reference/recipes/{name}.md": text for name, text in recipes.family_pages().items()}
    pages |= {f"reference/api/{name}.md": text for name, text in api.room_pages().items()}
    for path in sorted((DOCS / "notebooks").glob("*.ipynb")):
        pages[f"notebooks/{path.stem}.md"] = notebooks.page(path)
    for source, place in REPOSITORY_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        pages[place] = with_site_links(text, PurePosixPath(source), place)
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the marks of a page; mend the links of one that lies in docs/."""
    markdown = MARK.sub(lambda match: FILLED[match[1]](), markdown)
    if page.file.generated_by:
        return markdown
    return with_site_links(markdown, PurePosixPath("docs", page.file.src_uri), page.file.src_uri)


def with_site_links(markdown: str, source: PurePosixPath, place: str) -> str:
    """Links as the repository's files have them, as links between pages of the site.

    source  the file's path in the repository, from which its links go out
    place   the page's path in the site

    A link to a file that is no page of the site becomes its text.
    """

    def mended(match: re.Match) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = os.path.normpath(source.parent / target)
        if path in REPOSITORY_PAGES:
            found = REPOSITORY_PAGES[path]
        elif path.startswith("docs/"):
            found = path.removeprefix("docs/").replace(".ipynb", ".md")
        else:
            return text
        return f"[{text}]({os.path.relpath(found, PurePosixPath(place).parent)}{anchor})"

    parts = FENCED.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(mended, part) for part in parts)
