"""The recipe of ImageReward-tiny, cut in size and length, through the script that people launch."""

import os
import subprocess
import sys
from pathlib import Path

import imagereward as RM
from benchmarks.shapes.scorer_accuracy import accuracy
from imagereward import shapes

ROOT = Path(__file__).parents[1]
MARGIN = 0.08  # over a half; the first updates teach quality, what a prompt means comes later
# Fewer and narrower layers, a short warm-up, no pairs beside the rankings, whose loss is ten times theirs:
# what rankings teach first then takes a fifth of the time.
CUT = (
    *("architecture.vision.embed_dim=96", "architecture.vision.depth=2", "architecture.vision.num_heads=3"),
    *("architecture.text.width=96", "architecture.text.depth=2", "architecture.text.heads=3"),
    "architecture.text.mlp_width=384",
    *("warmup.updates=4", "warmup.warmup_updates=2", "warmup.batch_size=16", "warmup.micro_batch=16"),
    "warmup.rehearsal=0",
    *("updates=400", "warmup_updates=20", "learning_rate=7e-4"),
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
    plain, _ = accuracy(RM.load(tmp_path / "out", "cpu"), 200, seed=12)
    share, count = plain["all clear pairs"]
    assert count > 1000
    assert share >= 0.5 + MARGIN
