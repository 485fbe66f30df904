"""The API reference: a page for every folder of the package, filled from docstrings by mkdocstrings."""

import ast
from pathlib import Path

from markup import cell, table

import imagereward

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "imagereward"


def page() -> str:
    """Markdown: the names that `import imagereward` gives, and the folders of the package."""
    names = []
    for name in imagereward.__all__:
        if name != "__version__":
            public = getattr(imagereward, name)
            target = f"{public.__module__}.{public.__qualname__}"
            names.append((f"[`{name}`][{target}]", cell(_first_sentence(public.__doc__ or ""))))
    rooms = [
        (f"[`{_module(room)}`](api/{_module(room)}.md)", cell(_first_sentence(_docstring_of(_init(room)))))
        for room in _rooms()
    ]
    return "\n\n".join(
        [
            "## Names of `imagereward`",
            table(("name", "use"), names),
            "## Modules by folder",
            table(("folder", "content"), rooms),
        ]
    )


def room_pages() -> dict[str, str]:
    """Markdown of the page of every folder, by the folder's module name."""
    pages = {}
    for room in _rooms():
        modules = [_module(room), *(_module(path) for path in sorted(room.glob("*.py")) if _shown(path))]
        pages[_module(room)] = f"# {_module(room)}\n\n" + "\n\n".join(f"::: {each}" for each in modules)
    return pages


def _rooms() -> list[Path]:
    return sorted(path.parent for path in PACKAGE.rglob("__init__.py"))


def _init(room: Path) -> Path:
    return room / "__init__.py"


def _shown(path: Path) -> bool:
    return path.name not in ("__init__.py", "__main__.py")


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _docstring_of(path: Path) -> str:
    """The docstring of a module, which is not imported: some need the libraries of an extra."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def _first_sentence(docstring: str) -> str:
    return " ".join(docstring.split("\n\n")[0].split())
