"""The structure that CONTRIBUTING.md describes: arrows between rooms, circles, sizes, and the maps."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES, MOST_FILES = 300, 14
# A room may import from the rooms of the lines above its own, and from its own line.
LAYERS = """
    version errors precision table pages writing lookup main_guard uploading
    config generation_metadata images
    adapters
    records
    scoring
    models
    checkpoints shapes
    ensembles remote agreement rewards inpainting
    bulk
    report serve throughput
    demo integrations
    tuning.inheritance
    tuning.config tuning.distributed tuning.sharding
    tuning.recipe tuning.trainer_config tuning.transformers_arguments tuning.data tuning.sampling
    tuning.rewards tuning.families
    tuning.policy tuning.export
    tuning.rollouts
    tuning.objectives
    tuning.trainer tuning.evaluation
    tuning.reward_model tuning.judges tuning.finetune
    tuning.personal tuning.preprocessing
    tuning.from_scratch
    tuning tuning.explain
    choosing
    cli
    __main__
"""
LEVEL = {room: level for level, line in enumerate(LAYERS.strip().splitlines()) for room in line.split()}


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports() -> dict[str, set[str]]:
    """Module -> the modules of this repository that it imports, at its top or within its functions."""
    paths = {name_of(path): path for path in files("imagereward", "benchmarks", "train", "tests")}
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    names.add(inner if inner in paths else node.module)
        # Imported at the first use of a public name: an arrow for readers of types alone.
        found[name] = set() if name == "imagereward" else (names & paths.keys()) - {name, "imagereward"}
    return found


def room_of(module: str) -> str:
    """`imagereward.serve.app` -> serve; `imagereward.tuning.data.prompts` -> tuning.data."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if parts[0] == "tuning" else parts[0]


def test_arrows_between_rooms_point_down():
    up = [
        f"{module} imports {other}"
        for module, others in imports().items()
        if module.startswith("imagereward.")
        for other in others
        if other.startswith("imagereward.") and room_of(other) != room_of(module)
        if LEVEL[room_of(other)] > LEVEL[room_of(module)]
    ]
    assert not up


def test_no_modules_import_each_other_in_a_circle():
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(imports()[module]):
                walk(other, (*path, module))
            done.add(module)

    for module in imports():
        walk(module, ())


def test_nothing_but_tests_imports_from_tests():
    tests = {path.stem for path in files("tests")}
    for path in files("imagereward", "benchmarks", "train"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & tests, path


@pytest.mark.parametrize("package", ["imagereward", "benchmarks", "train"])
def test_files_and_folders_are_small(package):
    long = {str(path): len(path.read_text().splitlines()) for path in files(package)}
    assert not {path: lines for path, lines in long.items() if lines > MOST_LINES}
    folders = {path.parent for path in files(package)}
    full = {str(folder): len(list(folder.glob("*.py"))) for folder in folders}
    assert not {folder: count for folder, count in full.items() if count > MOST_FILES}


def test_the_maps_are_those_of_the_code():
    result = subprocess.run(
        [sys.executable, "docs/generate/maps.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
