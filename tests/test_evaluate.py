"""Evaluations: what judges them, and how much they hold at once."""

import json

import pipelines
import pytest
import torch
from conftest import small_scorer
from test_refl import PROMPTS, evaluations, run, settings

from imagereward.errors import InputError
from imagereward.tuning import run_recipe
from imagereward.tuning.evaluation.evaluate import diversity, sample_images
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.policy.policy import Policy

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


def test_a_column_of_the_prompts_is_none_of_a_file_of_lines_to_evaluate(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"prompt": "no", "words": "a red circle"}\n')
    (tmp_path / "watch.txt").write_text("a green ring\ntwo blue stars\n")
    seen = {**settings()["evaluation"], "prompts": str(tmp_path / "watch.txt")}
    told = []

    def judge(pixels, prompts):
        told.extend(prompts)
        return redness(pixels, prompts)

    changes = {"evaluation": seen, "prompt_column": "words", "updates": 1}
    run(tmp_path / "out", reward=judge, prompts=str(tmp_path / "train.jsonl"), **changes)
    assert {"a red circle", "a green ring", "two blue stars"} >= set(told) > {"a green ring"}
    with pytest.raises(
        InputError, match=r"watch\.txt has a prompt a line and no columns; leave out .*'words'"
    ):
        run(tmp_path / "other", reward=judge, prompts=str(tmp_path / "watch.txt"), **changes)


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


@pytest.mark.parametrize("family", ["sd", "flux_kontext", "flux_fill"])
def test_the_autoencoder_is_asked_for_one_image_at_a_time(family, monkeypatch):
    denoiser, sizes = open_denoiser(pipelines.FAMILIES[family](), 16), []
    vae = denoiser.autoencoder.vae
    for name in ("encode", "decode"):
        real = getattr(vae, name)
        monkeypatch.setattr(vae, name, lambda x, real=real: sizes.append(len(x)) or real(x))
    images = sample_images(Policy(denoiser, denoiser.dynamics(2)), pipelines.rows(family), 2, 0, 6, None)
    assert images.shape == (3, 2, 3, 16, 16)
    assert set(sizes) == {1}
    assert len(sizes) == (6 if family == "sd" else 9)  # what is shown is encoded once for both seeds


def test_images_decoded_one_by_one_are_those_of_a_batch_with_gradient():
    latents, sizes = open_denoiser(pipelines.sd(), 16).autoencoder, []
    real = latents.vae.decode
    latents.vae.decode = lambda x: sizes.append(len(x)) or real(x)
    noise = torch.randn(3, *latents.shape, generator=torch.Generator().manual_seed(0))
    together = latents.decode(noise.clone().requires_grad_())
    assert together.requires_grad
    torch.testing.assert_close(latents.decode(noise), together.detach(), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        latents.decode(noise.clone().requires_grad_())
    assert sizes == [3, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["ImageReward", "CLIP"])
def test_diversity_asks_the_scorer_for_a_batch_at_a_time(kind, monkeypatch):
    scorer, sizes = small_scorer(kind), []
    images = torch.rand(len(PROMPTS), 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = diversity(images, scorer, 9)
    real = scorer.encode_pixels
    monkeypatch.setattr(
        scorer, "encode_pixels", lambda batches: sizes.append(len(batches[0])) or real(batches)
    )
    assert diversity(images, scorer, 4) == pytest.approx(whole, abs=1e-5)
    assert sizes == [4, 4, 1]
