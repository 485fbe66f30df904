"""The page about the server: its Python and its curl lines, run as written."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import pictures, small_scorer

import imagereward as RM
from benchmarks.lib.serving import serving

PAGE = (Path(__file__).parents[1] / "docs/server.md").read_text()


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save("a.png")  # 2.4 MB: more than a command line holds
    pictures(1)[0].save("b.png")
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
    blocks = [block for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "curl" in block]
    assert len(blocks) == 1
    # A command ends with its line, unless that ends with a pipe.
    commands = re.split(r"(?<!\|)\n", blocks[0].strip())
    assert len(commands) == 3
    for written in commands:
        command = written.replace("http://127.0.0.1:8000", url)
        result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert '"scores":[' in result.stdout, result.stdout + result.stderr
