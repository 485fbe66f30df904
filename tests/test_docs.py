"""The documentation site: it builds without warnings and network, and leaves out no key and no command."""

import html
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

import pytest

from imagereward.tuning.recipe import read_recipe, recipe_names

ROOT = Path(__file__).parents[1]
# Answers nothing: whatever a build asks of the network fails.
NO_NETWORK = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
# Elements that load a file when the page is opened -> the attribute that names it.
LOADING = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}
LINK_KINDS = {"stylesheet", "icon", "preload", "preconnect", "prefetch", "modulepreload"}


class Page(HTMLParser):
    """A page's text, its anchors, and the addresses that it loads."""

    def __init__(self, path: Path):
        super().__init__()
        self.words: list[str] = []
        self.anchors: set[str] = set()
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors.add(found.get("id") or "")
        if tag in LOADING and (tag != "link" or LINK_KINDS & set((found.get("rel") or "").split())):
            self.loaded.append(found.get(LOADING[tag]) or "")

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site, in a directory of its own."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **NO_NETWORK, "PYTHONPATH": paths, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr, result.stderr
    return out


def generated(name: str):
    """A module of docs/generate."""
    sys.path.insert(0, str(ROOT / "docs/generate"))
    try:
        return __import__(name)
    finally:
        sys.path.pop(0)


def test_the_site_has_every_page_of_docs_and_writes_none_into_the_repository(site):
    for page in sorted((ROOT / "docs").rglob("*.md")):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file()
    for notebook in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        assert (site / "notebooks" / notebook.name).is_file()
        assert (site / "notebooks" / f"{notebook.stem}.html").is_file()
    assert not (site / "generate").exists()
    status = subprocess.run(
        ["git", "status", "--porcelain", "docs"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert not [line for line in status.splitlines() if "/reference/api/" in line or "/recipes/" in line]


def test_pages_load_nothing_from_other_hosts(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    foreign = {
        (str(page.relative_to(site)), address)
        for page in pages
        for address in Page(page).loaded
        if re.match(r"(https?:)?//", address)
    }
    assert not foreign


def test_no_mark_is_left_unfilled(site):
    assert [page for page in site.rglob("*.html") if "generated:" in page.read_text("utf-8")] == []


def test_the_recipes_page_names_every_key_of_every_objective(site):
    recipes = generated("recipes")
    text = (site / "reference/recipes.html").read_text("utf-8")
    for objective, kind in recipes.config_classes().items():
        section = text.split(f'<h2 id="{objective}">')[1].split("<h2")[0]
        keys = [key.name for key in recipes.keys_of(kind)]
        assert set(kind.model_fields) <= set(keys)
        assert [key for key in keys if f"<code>{key}</code>" not in section] == []


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_shown_with_every_value_that_it_sets(site, name):
    recipes = generated("recipes")
    family, anchor = name.split("/")[0], name.replace("/", "-")
    page = (site / f"reference/recipes/{family}.html").read_text("utf-8")
    section = page.split(f'<h2 id="{anchor}">')[1].split("<h2")[0]
    values = read_recipe(name)
    known = {key.name: key for key in recipes.keys_of(recipes.config_classes()[values["objective"]])}
    shown = dict(re.findall(r"<td><code>(.*?)</code></td>\s*<td><code>(.*?)</code></td>", section))
    for key, value in recipes.flat(values, known):
        assert html.unescape(shown[key]) == recipes.toml(value)


def test_every_command_is_described_with_its_options_and_examples(site):
    commands = generated("commands").commands()
    assert len(commands) > 8
    text = (site / "reference/commands.html").read_text("utf-8")
    for name, command in commands.items():
        section = text.split(f'<h2 id="{name}">')[1].split("<h2")[0]
        words = html.unescape(" ".join(re.sub(r"<[^>]+>", "", section).split()))
        assert f"imagereward {name} [OPTIONS]" in words
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert max(parameter.opts, key=len) in words, (name, parameter.name)
        assert (command.help or "").split(".")[0].split("`")[0] in words


def test_every_results_file_has_a_command_that_exists():
    results = generated("results")
    files = sorted((ROOT / "benchmarks/results").glob("*.json"))
    assert files
    for path in files:
        _, command = results.command_of(path.stem)
        module = command.split()[2]
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), command
        assert f"`{command}`" in results.page()


def test_every_module_of_the_package_is_in_the_api_reference(site):
    anchors: set[str] = set()
    for page in (site / "reference/api").glob("*.html"):
        anchors |= Page(page).anchors
    for path in sorted((ROOT / "imagereward").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__main__":
            module = ".".join(part for part in parts if part != "__init__")
            assert module in anchors
    assert {"imagereward.scoring.scorer.Scorer", "imagereward.checkpoints.loading.load"} <= anchors


def test_columns_of_a_docstring_become_a_list():
    columns = generated("columns")
    docstring = "Do it.\n\nprompt  a text\nimages  paths, or\n        arrays\n\nRaises InputError."
    assert columns.listed(docstring) == (
        "Do it.\n\n- `prompt`: a text\n- `images`: paths, or arrays\n\nRaises InputError."
    )
    prose = "One sentence.\n\nAnother, on\ntwo lines."
    assert columns.listed(prose) == prose


def test_the_python_on_the_first_page_runs_as_written(tmp_path, monkeypatch):
    from conftest import pictures, small_scorer

    import imagereward as RM
    from imagereward import tuning

    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RM, "load", lambda name: small_scorer("ImageReward"))
    monkeypatch.setattr(tuning, "tune", lambda *given, **settings: asked.append(settings))
    for name, picture in zip("ab", pictures(2)):
        picture.save(f"{name}.png")
    score, rank, tune = re.findall(r"```python\n(.*?)```", (ROOT / "docs/index.md").read_text(), re.DOTALL)
    names: dict = {}
    for block in (score, rank, tune):
        exec(block, names)
    assert len(names["ranking"]) == 2
    assert asked[0]["recipe"] in recipe_names()


def test_links_out_of_the_site_become_text_and_code_stays():
    hooks = generated("hooks")
    code = "```\nkinds[name](config)\n```"
    text = "[a](bulk.md#x) [b](../../setup.py) [c](../../CONTRIBUTING.md) [d](https://x.org)"
    mended = hooks.with_site_links(f"{text}\n{code}", PurePosixPath("docs/reference/p.md"), "reference/p.md")
    assert mended == f"[a](bulk.md#x) b [c](../contributing.md) [d](https://x.org)\n{code}"
