"""The page about the server: its Python and its curl lines, run as written."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import pictures, small_scorer
from serving import serving

import imagereward as RM

PAGE = (Path(__file__).parents[1] / "docs/server.md").read_text()


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, picture in zip("ab", pictures(2)):
        picture.save(f"{name}.png")
    np.save("batch.npy", np.zeros((2, 40, 50, 3), np.uint8))
    with serving({"ImageReward-v1.0": small_scorer("ImageReward")}) as url:
        yield url


def test_the_python_runs_as_written(url, monkeypatch, capsys):
    by_name = {"ImageReward-v1.0": "ImageReward", "Aesthetic": "Aesthetic"}
    monkeypatch.setattr("imagereward.ensembles.load", lambda name: small_scorer(by_name[name]))
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 4
    names: dict = {"RM": RM}
    for block in blocks:
        exec(block.replace("http://127.0.0.1:8000", url), names)
    assert "{1: 'image 1 is damaged" in capsys.readouterr().out


def test_the_curl_lines_answer_with_scores(url):
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    lines = re.findall(r"^curl .*$", PAGE, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        command = line.replace("http://127.0.0.1:8000", url)
        result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert '"scores":[' in result.stdout, result.stdout + result.stderr
