"""The notebooks of the docs run from the first cell to the last, offline; none is committed with outputs."""

from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
SECONDS_A_CELL = 300  # a cell that hangs ends the test


def test_there_are_four_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["compare", "quickstart", "reward_model", "tune"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert not [each for each in cells if each.get("outputs") or each.get("execution_count")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_first_to_last_cell(path, monkeypatch, tmp_path):
    from nbclient import NotebookClient

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # notebooks work in a temporary directory
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=SECONDS_A_CELL, kernel_name="python3", resources=resources).execute()
    code = [each for each in notebook.cells if each.cell_type == "code"]
    assert code
    assert all(each.execution_count for each in code)
