"""The commands of docs/sharding.md that two processors can run, as they are written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/sharding.md").read_text()


@pytest.mark.slow  # three programs that import torch, two of them at once
def test_the_first_example_trains_in_two_processes_and_goes_on_in_one(tmp_path):
    (commands,) = re.findall(r"To see it work .*?```bash\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    output = tmp_path / "tuned-sharded"
    assert len(list((output / "checkpoint-2" / "shards").iterdir())) == 2  # one file of each process
    assert not (output / "checkpoint-3" / "shards").exists()
    assert (output / "unet" / "diffusion_pytorch_model.safetensors").is_file()
