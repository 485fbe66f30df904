"""Guidance: as diffusers' pipelines take the same number, in every family, in compare and in evaluations."""

import json

import pipelines
import pytest
import torch
from diffusers import FluxPipeline, UNet2DConditionModel
from test_compare import PROMPTS, brightness, compared
from test_families import certain, drawn, drawn_by_diffusers

from imagereward.errors import InputError
from imagereward.tuning import tune
from imagereward.tuning.data.seeding import noise_for_samples
from imagereward.tuning.families.guidance import default_guidance
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.objectives.config import GeneratorConfig

SIDE = pipelines.SIDE
SHAPE = (pipelines.CHANNELS, SIDE // 2, SIDE // 2)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_a_guidance_of_one_and_below_is_what_it_is_in_diffusers(family, guidance):
    pipeline = pipelines.FAMILIES[family]()
    certain(pipeline.vae)
    rows = pipelines.rows(family, 2)
    theirs = drawn_by_diffusers(pipeline, family, rows, guidance)
    torch.testing.assert_close(drawn(pipeline, rows, guidance), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("guidance", [0.0, 0.999])
def test_a_flux_without_guidance_as_an_input_is_guided_above_one_alone(guidance):
    pipeline, rows = pipelines.flux(guidance_embeds=False), pipelines.rows("flux", 2)
    torch.testing.assert_close(drawn(pipeline, rows, guidance), drawn(pipeline, rows, 1.0))


def by_diffusers(pipeline, place, steps, **options):
    """compare's and an evaluation's first image of a prompt, drawn by the pipeline itself."""
    noise = noise_for_samples([0], SHAPE, 0, f"image of {place}")
    if isinstance(pipeline, FluxPipeline):
        noise = FluxPipeline._pack_latents(noise, *noise.shape)
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": SIDE, "width": SIDE, "num_inference_steps": steps}
    return pipeline(PROMPTS[place], latents=noise, output_type="pt", **size, **options).images[0]


@pytest.mark.parametrize("guidance", [0.5, 3.0])
def test_compare_draws_with_the_guidance_that_it_is_given(guidance):
    found = compared(pipelines.sd(), pipelines.sd(seed=1), guidance=guidance, seeds=1, steps=3)
    for images, seed in zip(found.images, (0, 1), strict=True):
        expected = by_diffusers(pipelines.sd(seed=seed), 1, 3, guidance_scale=guidance)
        torch.testing.assert_close(images[1, 0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("embeds", [True, False])
def test_without_guidance_compare_draws_a_flux_as_its_pipeline_does_by_itself(embeds):
    made = [pipelines.flux(seed, guidance_embeds=embeds) for seed in (0, 1)]
    found = compared(*made, guidance=None, seeds=1, steps=3)
    for images, seed in zip(found.images, (0, 1), strict=True):
        expected = by_diffusers(pipelines.flux(seed, guidance_embeds=embeds), 0, 3)
        torch.testing.assert_close(images[0, 0], expected, atol=1e-4, rtol=1e-4)


def test_without_guidance_each_of_two_kinds_of_flux_draws_as_by_itself():
    found = compared(pipelines.flux(), pipelines.flux(guidance_embeds=False), guidance=None, seeds=1, steps=3)
    for images, embeds in zip(found.images, (True, False), strict=True):
        expected = by_diffusers(pipelines.flux(guidance_embeds=embeds), 0, 3)
        torch.testing.assert_close(images[0, 0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        ("sd", {}, 7.5),
        ("sdxl", {}, 5.0),
        ("sd3", {}, 7.0),
        ("flux", {}, 3.5),
        ("flux_kontext", {}, 3.5),
        ("flux_fill", {}, 30.0),
        ("flux", {"guidance_embeds": False}, 1.0),
    ],
)
def test_the_guidance_of_a_pipeline_by_itself(family, options, expected):
    denoiser = open_denoiser(pipelines.FAMILIES[family](**options), SIDE)
    assert default_guidance(denoiser.pipeline, denoiser.network) == expected


@pytest.mark.parametrize("kind", [pipelines.FluxKontextPipeline, pipelines.FluxFillPipeline])
def test_no_flux_without_guidance_as_an_input_is_guided_by_itself(kind):
    more = pipelines.CHANNELS + 4 if kind is pipelines.FluxFillPipeline else 0
    pipeline = pipelines.flux(0, kind, more, guidance_embeds=False)
    assert default_guidance(pipeline, pipeline.transformer) == 1.0


@pytest.mark.parametrize("guidance", [-1.0, float("nan"), float("inf")])
def test_an_impossible_guidance_is_refused(guidance):
    with pytest.raises(InputError, match=f"guidance={guidance}"):
        compared(pipelines.sd(), pipelines.sd(), guidance=guidance)


@pytest.mark.parametrize("steps", [0, 3])  # as in training, and fewer
def test_an_evaluation_is_guided_as_training_is(steps, tmp_path):
    tune(
        pipelines.sd(),
        PROMPTS,
        reward=brightness,
        output=tmp_path / "out",
        resolution=SIDE,
        steps=5,
        guidance=3.0,
        eta=0.0,
        gradient={"first_step": 3, "last_step": 4},
        updates=1,
        batch_size=1,
        micro_batch=1,
        precision="float32",
        evaluation={"held_out": "", "count": 2, "seeds": 1, "steps": steps, "batch_size": 2},
    )
    history = json.loads((tmp_path / "out/history.json").read_text())
    images = [by_diffusers(pipelines.sd(), place, steps or 5, guidance_scale=3.0) for place in (0, 1)]
    expected = float(torch.stack(images).mean())
    assert history[0]["evaluation/reward"] == pytest.approx(expected, abs=1e-5)
    without = float(
        torch.stack(
            [by_diffusers(pipelines.sd(), at, steps or 5, guidance_scale=1.0) for at in (0, 1)]
        ).mean()
    )
    assert abs(expected - without) > 1e-4


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_unet_that_takes_guidance_as_an_input_is_refused(family):
    pipeline = pipelines.FAMILIES[family]()
    pipeline.unet = UNet2DConditionModel.from_config(pipeline.unet.config, time_cond_proj_dim=8)
    with pytest.raises(InputError, match="takes its guidance as an input"):
        open_denoiser(pipeline, SIDE)


def test_the_field_says_the_rule():
    assert "1 and below is none, as in diffusers" in GeneratorConfig.model_fields["guidance"].description
