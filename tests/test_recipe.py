"""The recipe of ImageReward-tiny, cut to two minutes, through the script that people launch."""

import os
import subprocess
import sys
from pathlib import Path

import imagereward as RM
from benchmarks.shapes.scorer_accuracy import accuracy
from imagereward import shapes

ROOT = Path(__file__).parents[1]
MARGIN = 0.08  # over a half; the first updates teach quality, what a prompt means comes later
CUT = (
    "warmup.updates=15",
    "warmup.warmup_updates=5",
    "updates=150",
    "warmup_updates=20",
    "validations=1",
    "trainer.disable_tqdm=true",
)


def test_the_tiny_recipe_cut_to_minutes_beats_chance_by_the_margin(tmp_path):
    shapes.write(tmp_path / "shapes", 500, seed=11, progress=False)
    command = [sys.executable, "train/reward_model.py", "tiny/preference"]
    command += [f"data={tmp_path / 'shapes'}", f"output={tmp_path / 'out'}", *CUT]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert result.returncode == 0, result.stderr
    share, count = accuracy(RM.load(tmp_path / "out", "cpu"), 200, seed=12)["all clear pairs"]
    assert count > 1000
    assert share >= 0.5 + MARGIN
