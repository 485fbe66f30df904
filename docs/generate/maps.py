"""Write the maps: a README.md in every folder of code, and the block of rooms in CONTRIBUTING.md.

    python docs/generate/maps.py            writes what differs
    python docs/generate/maps.py --check    writes nothing; exits with 1 and names what differs

The line of a module is the first sentence of its docstring. That of a folder comes from its __init__.py, and
that of a recipe is the first sentence of its comment.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOPS = {
    "imagereward": "the package",
    "benchmarks": "measurements; results/ has their files",
    "train": "trainings as scripts, for use from a clone",
}
PACKAGES = tuple(TOPS)
RECIPES = ROOT / "imagereward/tuning/recipes"
BLOCK = re.compile(r"(<!-- map -->\n).*?(<!-- /map -->)", re.DOTALL)


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=\.)(?<!et al\.)\s(?=[\w`])", paragraph)[0].rstrip(".:")


def folders_of(folder: Path) -> list[Path]:
    """The folders of code right below."""
    return sorted(each.parent for each in folder.glob("*/__init__.py"))


def rows_of(folder: Path) -> list[tuple[str, str]]:
    """(name, sentence) of every folder and module right below."""
    rows = [
        (f"[{each.name}/]({each.name})", first_sentence(each / "__init__.py")) for each in folders_of(folder)
    ]
    if folder == RECIPES.parent:
        rows.append(("[recipes/](recipes)", "Configs of trainings in TOML, by family of generators"))
    modules = [each for each in sorted(folder.glob("*.py")) if each.name != "__init__.py" or _defines(each)]
    return rows + [(f"[{each.name}]({each.name})", first_sentence(each)) for each in modules]


def _defines(path: Path) -> bool:
    """Whether a module has functions or classes of its own."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) for node in ast.parse(path.read_text(encoding="utf-8")).body)


def readme(folder: Path) -> str:
    """A folder's map as Markdown."""
    init = folder / "__init__.py"
    about = first_sentence(init) + ".\n\n" if init.exists() else ""
    rows = "".join(f"| {name} | {sentence} |\n" for name, sentence in rows_of(folder))
    return f"# {folder.relative_to(ROOT)}\n\n{about}| | |\n|---|---|\n{rows}"


def recipes() -> str:
    """The map of the recipes as Markdown."""
    about = (
        "Configs of trainings in TOML: one folder for each family of generators (tiny: models of this "
        "repository), one file for each recipe.\n`imagereward tune FAMILY/NAME key=value` runs it, and "
        "`--explain` lists its keys with their meanings."
    )
    rows = "".join(
        f"| [{path.parent.name}/{path.stem}]({path.parent.name}/{path.name}) | {_first_of_comment(path)} |\n"
        for path in sorted(RECIPES.glob("*/*.toml"))
    )
    return f"# {RECIPES.relative_to(ROOT)}\n\n{about}\n\n| | |\n|---|---|\n{rows}"


def _first_of_comment(path: Path) -> str:
    """The first sentence of a recipe's comment, without text in parentheses such as references."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    prose = " ".join(line[2:] for line in comment if not line.startswith("#  "))
    return re.split(r"(?<=\.)\s+(?=[A-Za-z`])", re.sub(r"\s*\([^()]*\)", "", prose))[0].rstrip(".")


def rooms() -> str:
    """The top level on one screen."""
    lines = []
    for package in PACKAGES:
        lines.append((f"{package}/", TOPS[package]))
        for each in folders_of(ROOT / package):
            lines.append((f"  {each.name}/", first_sentence(each / "__init__.py")))
            if each.name == "tuning":
                lines += [
                    (f"    {room.name}/", first_sentence(room / "__init__.py")) for room in folders_of(each)
                ]
                lines.append(("    recipes/", "Configs of trainings in TOML, by family of generators"))
    width = max(len(name) for name, _ in lines) + 2
    return "```text\n" + "".join(f"{name:{width}}{line}".rstrip() + "\n" for name, line in lines) + "```\n"


def main() -> None:
    """The command."""
    written = {folder / "README.md": readme(folder) for folder in all_folders()}
    contributing = ROOT / "CONTRIBUTING.md"
    text = contributing.read_text(encoding="utf-8")
    written[RECIPES / "README.md"] = recipes()
    written[contributing] = BLOCK.sub(lambda match: match[1] + rooms() + match[2], text)
    stale = [path for path, text in written.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        print(path.relative_to(ROOT))
        if "--check" not in sys.argv:
            path.write_text(written[path], encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.exit("the maps above differ from the code: python docs/generate/maps.py")


def all_folders() -> list[Path]:
    """Every folder with Python files."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return sorted({path.parent for path in paths})


if __name__ == "__main__":
    main()
