"""The tiny generators in the repository: what they draw, by whom, and that they can be tuned."""

import json
import sys

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from pipelines import network_of
from test_launch import ROOT, launch

from benchmarks.lib.paths import TINY_INPAINT
from benchmarks.toy_models.drawings import drawings
from benchmarks.toy_models.tiny_inpaint import held_out
from benchmarks.training.finetune import STEPS, prompts_of
from imagereward import shapes
from imagereward.shapes.inpainting import measure_inpainting
from imagereward.shapes.rewards import measured
from imagereward.tuning.data.seeding import noise_for_samples

HOMES = {name: ROOT / "benchmarks" / "toy_models" / name for name in ("tiny-sd", "tiny-flow")}
PROMPTS = 64


@pytest.mark.parametrize("home", [*HOMES.values(), TINY_INPAINT], ids=lambda home: home.name)
def test_it_is_small(home):
    files = [path for path in home.rglob("*") if path.is_file()]
    assert 5e6 < sum(path.stat().st_size for path in files) < 15e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".jinja", ".md"}
    assert not any("_name_or_path" in path.read_text() for path in files if path.suffix == ".json")


@pytest.mark.parametrize(("name", "told_by"), [("tiny-sd", ("colour", "shape")), ("tiny-flow", ("colour",))])
def test_it_draws_what_is_asked_for_as_often_as_is_said(name, told_by):
    prompts = prompts_of("test", PROMPTS)
    images = drawings(HOMES[name], prompts, 1.0)
    own, other = (measured(images, texts) for texts in (prompts, np.roll(prompts, 1).tolist()))
    rows = json.loads((ROOT / "benchmarks/results/tiny-drawings.json").read_text())["rows"]
    (published,) = (row for row in rows if row["images"] == name)
    for attribute in ("colour", "shape"):
        values = mean(own, attribute)
        assert values == pytest.approx(published[attribute], abs=0.12), attribute
        if attribute in told_by:
            assert values > mean(other, attribute) + 0.1, attribute


def mean(found, attribute):
    return np.mean([one.attributes[attribute] for one in found if attribute in one.attributes])


# What diffusers must be told besides: prompts have no T5 tokens but one.
TOLD = {"tiny-sd": {"guidance_scale": 3.0}, "tiny-flow": {"guidance_scale": 1.0, "max_sequence_length": 1}}


@pytest.mark.parametrize("name", HOMES)
def test_plain_diffusers_draws_with_it(name):
    pipeline = DiffusionPipeline.from_pretrained(HOMES[name], dtype=torch.float32, **absent(name))
    pipeline.set_progress_bar_config(disable=True)
    prompts = prompts_of("test", 16)
    noise = noise_for_samples(range(16), (4, 16, 16), 0)
    images = pipeline(
        prompts, latents=noise, num_inference_steps=STEPS, output_type="pil", **TOLD[name]
    ).images
    found = [shapes.measure(image, prompt).attributes["colour"] for image, prompt in zip(images, prompts)]
    assert np.mean(found) > 0.4


def test_plain_diffusers_paints_what_is_asked_for_inside_the_mask_and_keeps_the_rest():
    pipeline = DiffusionPipeline.from_pretrained(TINY_INPAINT, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    rows = held_out(16)
    asked = [row.prompt for row in rows]
    images = pipeline(
        asked,
        [row.image for row in rows],
        [row.mask for row in rows],
        latents=noise_for_samples(range(16), (4, 16, 16), 0),
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        width=64,
        height=64,
    ).images
    own, other = (
        [
            measure_inpainting(image, prompt, row.image, row.mask)
            for image, row, prompt in zip(images, rows, prompts, strict=True)
        ]
        for prompts in (asked, asked[-1:] + asked[:-1])
    )
    assert mean(own, "colour") > mean(other, "colour") + 0.1
    assert np.mean([one.outside for one in own]) < 0.05


def absent(name):
    """What diffusers wants to be told of parts that a pipeline was saved without."""
    return {"text_encoder_3": None} if name == "tiny-flow" else {}


@pytest.mark.parametrize(
    ("name", "script", "recipe"),
    [
        ("tiny-sd", "refl", "tiny/refl"),
        ("tiny-flow", "refl", "tiny/refl_flow"),
        ("tiny-flow", "grpo", "tiny/grpo_fast"),
    ],
)
def test_its_recipes_tune_it(name, script, recipe, tmp_path):
    """The recipe as it is but for its length."""
    (tmp_path / "prompts.txt").write_text("\n".join(prompts_of("train", 32)))
    values = {
        "model": HOMES[name],
        "prompts": tmp_path / "prompts.txt",
        "output": tmp_path / "out",
        "updates": 3,
        "batch_size": 8,
        "micro_batch": 8,
        "evaluate_every": 3,
        "evaluation.count": 4,
    }
    history = launch([(sys.executable,)], script, recipe, values)
    assert [entry["update"] for entry in history if "loss" in entry] == [1, 2, 3]
    before, after = (
        network_of(DiffusionPipeline.from_pretrained(path, **absent(name))).state_dict()
        for path in (HOMES[name], tmp_path / "out")
    )
    assert any(not torch.equal(value, after[key]) for key, value in before.items())
