"""The package as people get it: a wheel, its import cost, its layering, its docs and its own rules."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import imagereward as RM
from imagereward.adapters.base import Adapter
from imagereward.adapters.interventions import Intervention
from imagereward.bulk.inputs.source import Source
from imagereward.images.processor import Processor
from imagereward.records.layouts import Layout
from imagereward.records.record import Reader
from imagereward.scoring.questions import Question
from imagereward.tuning.families.autoencoder import Autoencoder
from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.objectives.config import GeneratorConfig
from imagereward.tuning.sampling.base import Dynamics

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "imagereward"
SEAMS = (
    *(RM.Scorer, Processor, Question, Source, Reader, Layout),
    *(Autoencoder, Denoiser, Dynamics, GeneratorConfig),
    *(Adapter, Intervention),
)


def python(code: str, **options) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_loads_no_optional_or_slow_library():
    heavy = (
        "transformers diffusers accelerate peft datasets open_clip timm fastapi ray pandas matplotlib torch"
    )
    loaded = python(f"import sys, imagereward; print([m for m in {heavy.split()} if m in sys.modules])")
    assert loaded == "[]"


def test_no_submodule_takes_the_place_of_a_public_name():
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not modules & set(RM.__all__)
    assert all(getattr(RM, name) for name in RM.__all__)


def test_scoring_with_imagereward_needs_neither_open_clip_nor_transformers(tmp_path):
    from conftest import small_scorer

    small_scorer("ImageReward").save_pretrained(tmp_path)
    code = (
        f"import sys, imagereward, PIL.Image; m = imagereward.load({str(tmp_path)!r}, 'cpu');"
        "m.score('a', PIL.Image.new('RGB', (9, 9)));"
        "print([name for name in ('open_clip', 'transformers') if name in sys.modules])"
    )
    assert python(code, cwd=ROOT) == "[]"


def test_the_wheel_installed_alone_scores_with_its_own_vocabulary(tmp_path):
    from conftest import pictures, small_scorer

    source = tmp_path / "source"
    shutil.copytree(PACKAGE, source / "imagereward", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)

    scorer = small_scorer("ImageReward")
    scorer.save_pretrained(tmp_path / "model")
    pictures(1)[0].save(tmp_path / "a.png")
    code = (
        "import imagereward; print(imagereward.__file__);"
        "print(imagereward.load('model', 'cpu').score('a red bicycle', 'a.png'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    where, score = python(code, cwd=tmp_path, env=environment).splitlines()
    assert where.startswith(str(tmp_path / "site"))
    assert float(score) == scorer.score("a red bicycle", tmp_path / "a.png")
    site = tmp_path / "site"
    command = [sys.executable, str(site / "bin" / "imagereward"), "score", "-m", "model", "a", "a.png"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert f"{scorer.score('a', tmp_path / 'a.png'):.4f}" in result.stdout, result.stderr
    assert (site / "imagereward" / "py.typed").exists()
    shipped = {path.name for path in (site / "imagereward/pages/templates").iterdir()}
    assert shipped == {path.name for path in (PACKAGE / "pages/templates").iterdir()}
    assert not (site / "tests").exists()
    (metadata,) = site.glob("imagereward-*.dist-info")
    assert {path.name for path in metadata.rglob("*")} >= {"LICENSE", "NOTICE"}
    assert "Project-URL: Paper, https://arxiv.org/abs/2304.05977" in (metadata / "METADATA").read_text()


def test_the_version_stands_in_one_place_and_tops_the_changelog():
    top = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1)
    assert top == RM.__version__


def public_functions():
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            members = node.body if isinstance(node, ast.ClassDef) else []
            for item in (node, *members):
                if not isinstance(item, (ast.FunctionDef, ast.ClassDef)) or item.name.startswith("_"):
                    continue
                if "overload" not in [getattr(each, "id", "") for each in item.decorator_list]:
                    yield path, node, item


def test_every_public_class_and_function_has_a_docstring():
    # Overrides inherit theirs: a seam is documented where it is defined.
    inherited = {name for seam in SEAMS for name, _ in inspect.getmembers(seam)} | {"forward", "mean", "std"}
    seams = {seam.__name__ for seam in SEAMS}
    bare = [
        f"{path.relative_to(PACKAGE)}:{item.name}"
        for path, node, item in public_functions()
        if not ast.get_docstring(item)
        and not (item is not node and node.name not in seams and item.name in inherited)
    ]
    assert not bare


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join
)
def test_lint_format_and_types_are_clean(command):
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


TYPED = """
from pathlib import Path
from typing import assert_type

import numpy as np
import PIL.Image
import torch

import imagereward as RM
from imagereward.images.processor import Processor
from imagereward.scoring.questions import Question

scorer, picture, pixels = RM.load(), PIL.Image.new("RGB", (9, 9)), torch.rand(2, 3, 9, 9)
assert_type(scorer, RM.Scorer)
for one in ("a.png", Path("a.png"), b"PNG", picture):
    assert_type(scorer.score("a", one), float)
assert_type(scorer.score("a", ["a.png", "b.png"]), list[float])
assert_type(scorer.score("a", [picture, Path("b.png")]), list[float])
assert_type(scorer.score("a", (picture,)), list[float])
assert_type(scorer.score("a", [np.zeros((9, 9, 3), np.uint8)]), list[float])
assert_type(scorer.score("a", pixels), float | list[float])
assert_type(RM.ensemble({"CLIP": 1.0}).score("a", picture), float)
assert_type(RM.connect("http://x").score("a", [picture]), list[float])
assert_type(scorer.rank("a", ["a.png"]), RM.Ranking)
assert_type(scorer.rank("a", pixels), RM.Ranking)
assert_type(scorer.best_of("a", pixels), list[int])
assert_type(scorer.score_pairs(["a"], [picture]), list[float])
assert_type(scorer.reward(pixels, "a"), torch.Tensor)
scorer.score("a", 3)  # error
scorer.score(["a"], picture)  # error
scorer.score("a", [3])  # error
scorer.rank("a", None)  # error
"""


def test_verbs_have_the_types_that_they_return(tmp_path):
    from mypy import api

    (tmp_path / "typed.py").write_text(TYPED)
    expected = [number for number, line in enumerate(TYPED.splitlines(), 1) if line.endswith("# error")]
    options = ["--cache-dir", str(ROOT / ".mypy_cache"), "--config-file", str(ROOT / "pyproject.toml")]
    report, faults, _ = api.run([str(tmp_path / "typed.py"), *options])
    assert not faults
    assert [int(number) for number in re.findall(r"typed.py:(\d+): error", report)] == expected, report


def test_every_page_shows_the_measured_tables():
    from benchmarks.pages.render import PAGES, SOURCES, TABLES, rendered

    results = {path.stem for path in (ROOT / "benchmarks/results").glob("*.json")}
    texts = {page: page.read_text() for page in PAGES}
    shown = re.findall(rf"<!-- ({'|'.join(TABLES)}) -->", "".join(texts.values()))
    assert len(shown) == len(set(shown))
    assert {SOURCES.get(name, name) for name in shown} == results
    assert [page for page, text in texts.items() if rendered(text) != text] == []


def test_pictures_and_pages_that_pages_link_to_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readme_is_short_begins_with_a_picture_and_has_the_command_that_ci_runs():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 150
    assert next(line for line in lines[1:] if line).startswith("![")
    assert "python -m pip install . && imagereward demo" in lines
    assert next(line for line in lines if "python -m pytest" in line).endswith(" && python -m pytest")


@pytest.mark.parametrize(("page", "count"), [("README.md", 3), ("docs/scoring.md", 4)])
def test_the_python_of_the_pages_about_scoring_runs_as_written(page, count, tmp_path, monkeypatch):
    from conftest import CONFIGS, pictures, small_scorer

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert len(blocks) == count
    monkeypatch.chdir(tmp_path)
    for name, picture in zip("ab", pictures(2)):
        picture.save(f"{name}.png")
    by_name = {"ImageReward-v1.0": "ImageReward", "Aesthetic": "Aesthetic"}
    assert set(by_name.values()) <= set(CONFIGS)
    monkeypatch.setattr(RM, "load", lambda name: small_scorer(by_name[name]))
    monkeypatch.setattr("imagereward.ensembles.load", lambda name: small_scorer(by_name[name]))

    from benchmarks.lib.serving import serving

    names: dict = {}
    with serving({"ImageReward-v1.0": small_scorer("ImageReward")}) as url:
        for block in blocks:
            exec(block.replace("http://127.0.0.1:8000", url), names)
    assert len(names["ranking"]) == 2
    assert page == "README.md" or len(names["both"].scorers) == 2


def test_the_python_in_the_page_about_finetuning_runs_as_written(monkeypatch, tmp_path):
    """On a tiny pipeline by a reward at hand, for one update; the lines that load, on what that leaves."""
    import pipelines
    import torch
    from test_refl import PROMPTS, brightness, settings

    import imagereward.tuning as tuning

    def small(model, prompts, *, reward, output, **changes):
        changes |= {"updates": 1}
        assert (model, reward) == ("stable-diffusion-v1-5/stable-diffusion-v1-5", "ImageReward-v1.0")
        values = settings(**changes)
        return real(pipelines.sd(), PROMPTS, reward=brightness, output=tmp_path / output, **values)

    real = tuning.tune
    monkeypatch.setattr(tuning, "tune", small)
    page = (ROOT / "docs/finetuning.md").read_text()
    block, _hybrid, loading = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict = {"__name__": "__main__"}
    exec(block, names)
    assert type(names["pipeline"]).__name__ == "StableDiffusionPipeline"
    imports, whole, by_lora = re.fullmatch(r"(.*\n\n)(.*?\n)(.*)", loading, re.DOTALL).groups()
    pipelines.sd().save_pretrained(tmp_path / "BASE")
    monkeypatch.chdir(tmp_path)
    exec(imports + whole, names)
    assert names["pipeline"].unet.dtype == torch.float32
    monkeypatch.chdir(tmp_path / "BASE")  # so that "tuned" is another
    real(pipelines.sd(), PROMPTS, reward=brightness, output="tuned", **settings(updates=1, lora={"rank": 2}))
    exec(imports + by_lora.replace('"BASE"', '"."'), names)
    assert names["pipeline"].get_active_adapters()


def test_the_python_in_the_page_about_shapes_runs_as_written(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/shapes.md").read_text(), re.DOTALL)
    exec(block, {})
    assert "->" in capsys.readouterr().out
