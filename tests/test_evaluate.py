"""Evaluations: what judges them."""

import json

import pipelines
import pytest
from test_refl import evaluations, run, settings

from imagereward.tuning import run_recipe

RECIPE = """
objective = "sft"
model = "{model}"
output = "{output}"
resolution = 16
steps = 3
updates = 2
batch_size = 2
micro_batch = 2
evaluate_every = 1

[pairs]
data = "shapes"
pairs = 4

[evaluation]
held_out = {held_out}
count = 2
batch_size = 2
patience = 1
"""


def redness(pixels, prompts):
    return pixels[:, 0].mean((1, 2))


def darkness(pixels, prompts):
    return -pixels.mean((1, 2, 3))


BOTH = '{"test_evaluate:redness" = 1.0, "test_evaluate:darkness" = 0.5}'


@pytest.mark.parametrize("held_out", ['"test_evaluate:redness"', BOTH])
def test_a_training_without_a_reward_is_watched_by_a_held_out_one(held_out, tmp_path):
    output = tmp_path / "out"
    pipelines.sd().save_pretrained(tmp_path / "model")
    recipe = RECIPE.format(model=tmp_path / "model", output=output, held_out=held_out)
    (tmp_path / "sft.toml").write_text(recipe)
    run_recipe(tmp_path / "sft.toml")
    assert len(evaluations(output, "held_out")) == 3
    assert not evaluations(output, "reward")
    assert "| held_out |" in (output / "README.md").read_text()


def test_several_held_out_rewards_are_logged_as_their_sum_and_one_by_one(tmp_path):
    weights = {"test_evaluate:redness": 1.0, "test_evaluate:darkness": 0.5}
    seen = {**settings()["evaluation"], "held_out": weights}
    run(tmp_path / "out", evaluation=seen)
    whole, *each = (
        evaluations(tmp_path / "out", f"held_out{part}") for part in ("", *(f"/{name}" for name in weights))
    )
    assert whole == pytest.approx([one + 0.5 * other for one, other in zip(*each, strict=True)])
    assert json.loads((tmp_path / "out/run.json").read_text())["evaluation"]["held_out"] == weights
