"""Fine-tuning through the scripts that people launch, by the tiny recipe cut to three updates."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pipelines
import pytest
import torch
from conftest import small_scorer
from diffusers import StableDiffusionPipeline

ROOT = Path(__file__).parents[1]
TWO = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")


@pytest.mark.parametrize("launcher", [(sys.executable,), TWO], ids=["alone", "accelerate"])
def test_refl_by_the_tiny_recipe_runs_three_updates_and_leaves_a_pipeline(launcher, tmp_path):
    pipelines.sd("v_prediction").save_pretrained(tmp_path / "sd")
    small_scorer("ImageReward").save_pretrained(tmp_path / "reward")
    (tmp_path / "prompts.txt").write_text(
        "a red circle\ntwo blue stars\none large orange square\na green ring\n"
    )
    values = {
        "model": tmp_path / "sd",
        "prompts": tmp_path / "prompts.txt",
        "output": tmp_path / "out",
        "reward": tmp_path / "reward",
        "updates": 3,
        "batch_size": 4,
        "micro_batch": 2,
        "evaluate_every": 3,
        "evaluation.count": 2,
        "evaluation.batch_size": 4,
    }
    command = [*launcher, "train/refl.py", "tiny/refl", *(f"{key}={value}" for key, value in values.items())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert [entry["update"] for entry in history if "loss" in entry] == [1, 2, 3]
    before, after = (StableDiffusionPipeline.from_pretrained(tmp_path / name).unet for name in ("sd", "out"))
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters()))
