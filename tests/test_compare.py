"""Comparing two generators: figures by hand, through the command, and what it refuses."""

import json
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pipelines
import pytest
import torch
from scipy.stats import ttest_rel

from imagereward.errors import InputError
from imagereward.tuning import tune
from imagereward.tuning.evaluation import compare as comparing
from imagereward.tuning.evaluation.compare import compare
from imagereward.tuning.evaluation.comparison import Comparison, paired_interval, win_rate
from imagereward.tuning.evaluation.evaluate import diversity, overoptimized, sample_images
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.policy.trainable import LoRA, set_trainable, trainable_parameters

PROMPTS = ["a red circle", "two blue squares"]


def brightness(pixels, prompts):
    return pixels.mean((1, 2, 3))


def compared(base, tuned, **changes):
    values = {"seeds": 2, "steps": 4, "guidance": 1.0, "resolution": 16, "device": "cpu"}
    return compare(base, tuned, PROMPTS, brightness, **{**values, **changes})


def test_a_model_against_itself_is_no_better():
    found = compared(pipelines.sd(), pipelines.sd())
    (row,) = found.rows()
    assert row["difference"] == row["low"] == row["high"] == 0
    assert row["win rate"] == 0.5
    assert found.diversity[0] == found.diversity[1] > 0
    assert torch.equal(*found.images)


def test_a_pipeline_as_both_is_refused_for_it_would_be_no_better():
    pipeline = pipelines.sd()
    with pytest.raises(
        InputError, match=r"one and the same pipeline: tune\(\) changes .* directory or hub id"
    ):
        compared(pipeline, pipeline)


@pytest.fixture
def lora(tmp_path):
    """Weights for `pipelines.sd()` that are felt."""
    from peft.utils import get_peft_model_state_dict

    denoiser = open_denoiser(pipelines.sd(), 16)
    set_trainable(denoiser, LoRA(rank=2))
    for value in trainable_parameters(denoiser.network).values():
        torch.nn.init.normal_(value.data, generator=torch.Generator().manual_seed(0))
    layers = get_peft_model_state_dict(denoiser.network)
    denoiser.pipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)
    return tmp_path / "lora"


def test_lora_weights_are_gone_from_the_base_afterwards(lora, monkeypatch):
    base = pipelines.sd()
    first, second = compared(base, lora), compared(base, lora)
    assert (first.before["brightness"] - first.after["brightness"]).any()
    for name in ("before", "after"):
        np.testing.assert_array_equal(getattr(first, name)["brightness"], getattr(second, name)["brightness"])

    real = comparing.sample_images

    def failing(policy, *rest):
        if getattr(policy.denoiser.network, "peft_config", None):
            raise OSError("no more memory")
        return real(policy, *rest)

    monkeypatch.setattr(comparing, "sample_images", failing)
    with pytest.raises(OSError, match="no more memory"):
        compared(base, lora)
    monkeypatch.undo()
    np.testing.assert_array_equal(compared(base, lora).before["brightness"], first.before["brightness"])


def test_lora_weights_are_not_loaded_beside_others(lora):
    base = pipelines.sd()
    base.load_lora_weights(lora)
    with pytest.raises(InputError, match=r"adapters already, beside which .*lora would be loaded"):
        compared(base, lora)
    assert base.unet.peft_config


def watched(monkeypatch):
    """The pipelines that are drawn with, as they are when they draw, in the place of drawing."""
    seen = []

    def watch(policy, rows, seeds, *_):
        parts = policy.denoiser.pipeline.components
        seen.append({name: parts[name].dtype for name in ("unet", "text_encoder", "vae")})
        seen[-1]["weights"] = {name: value.clone() for name, value in parts["vae"].state_dict().items()}
        return torch.zeros(len(rows), seeds, 3, 16, 16)

    monkeypatch.setattr(comparing, "sample_images", watch)
    return seen


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_autoencoder_is_read_in_float32_whatever_the_rest_is(dtype, tmp_path, monkeypatch):
    stored, seen = pipelines.sd(), watched(monkeypatch)
    stored.save_pretrained(tmp_path / "model")
    compared(tmp_path / "model", pipelines.sd(), dtype=dtype)
    assert (seen[0]["unet"], seen[0]["text_encoder"], seen[0]["vae"]) == (dtype, dtype, torch.float32)
    for name, value in stored.vae.state_dict().items():
        assert torch.equal(seen[0]["weights"][name], value)


def test_models_in_half_precision_draw_images_near_those_in_float32(tmp_path):
    for name, seed in (("base", 0), ("tuned", 1)):
        pipelines.sd(seed=seed).save_pretrained(tmp_path / name)
    whole, half = (
        compared(tmp_path / "base", tmp_path / "tuned", dtype=dtype)
        for dtype in (torch.float32, torch.float16)
    )
    for name in ("before", "after"):
        np.testing.assert_allclose(
            getattr(half, name)["brightness"], getattr(whole, name)["brightness"], atol=0.01
        )


def test_a_pipeline_given_in_half_precision_decodes_in_float32_and_stays_as_it_was(monkeypatch):
    seen, base, tuned = watched(monkeypatch), pipelines.sd(), pipelines.sd(seed=1).to(torch.float16)
    before = {name: value.clone() for name, value in tuned.vae.state_dict().items()}
    compared(base, tuned)
    assert (seen[1]["unet"], seen[1]["vae"]) == (torch.float16, torch.float32)
    assert all(torch.equal(value, before[name]) for name, value in tuned.vae.state_dict().items())
    assert tuned.vae.dtype == torch.float16


def test_figures_are_those_of_the_images():
    found = compared(pipelines.sd(), pipelines.sd(seed=1))
    for images, scores in zip(found.images, (found.before, found.after), strict=True):
        assert images.shape == (2, 2, 3, 16, 16)
        expected = images.mean((2, 3, 4)).numpy()
        np.testing.assert_allclose(scores["brightness"], expected, rtol=1e-5)
    (row,) = found.rows()
    assert row["difference"] == pytest.approx(row["tuned"] - row["base"], abs=1e-6)
    assert row["low"] <= row["difference"] <= row["high"]
    for name, scores in (("base", found.before), ("tuned", found.after)):
        low, high = paired_interval(np.zeros(2), scores["brightness"].mean(1))
        assert low <= row[name] <= high
        assert row[f"{name} ±"] == pytest.approx((high - low) / 2)


def test_models_draw_as_their_pipelines_do_by_themselves(monkeypatch):
    asked = []

    def sample(self, condition, noise):
        asked.append((self.dynamics.steps, self.guidance))
        return torch.zeros(len(noise), 3, 16, 16)

    monkeypatch.setattr(Policy, "sample", sample)
    for family in ("sd", "flux"):
        compared(
            pipelines.FAMILIES[family](), pipelines.FAMILIES[family](), steps=None, guidance=None, seeds=1
        )
    assert asked == [(50, 7.5)] * 2 + [(28, 3.5)] * 2


def test_models_that_take_pictures_are_compared_on_them(tmp_path):
    records = []
    for at, row in enumerate(pipelines.rows("flux_fill")):
        for name in ("image", "mask"):
            getattr(row, name).save(tmp_path / f"{name}-{at}.png")
        records.append({"prompt": row.prompt, "image": f"image-{at}.png", "mask": f"mask-{at}.png"})
    (tmp_path / "rows.json").write_text(json.dumps(records))
    models = pipelines.flux_fill(), pipelines.flux_fill(seed=1)
    found = compare(
        *models,
        tmp_path / "rows.json",
        brightness,
        seeds=1,
        steps=3,
        resolution=16,
        device="cpu",
        most=2,
    )
    assert found.prompts == list(pipelines.PROMPTS[:2])
    assert found.before["brightness"].shape == (2, 1)
    with pytest.raises(InputError, match=r"prompts\[0\] has no image"):
        compare(*models, ["a cat"], brightness, seeds=1, steps=3, resolution=16, device="cpu")


@pytest.mark.parametrize("size", [3, 64])
def test_images_do_not_depend_on_the_batch(size):
    one, many = (compared(pipelines.sd(), pipelines.sd(), batch_size=each) for each in (1, size))
    torch.testing.assert_close(one.images[0], many.images[0], atol=1e-5, rtol=1e-5)


def test_an_image_depends_on_its_prompts_place_and_its_number_alone(monkeypatch):
    """Not on how many prompts there are, nor on how many images of each."""
    real, sizes = Policy.sample, []

    def counted(self, condition, noise):
        sizes.append(len(noise))
        return real(self, condition, noise)

    monkeypatch.setattr(Policy, "sample", counted)
    many = compared(pipelines.sd(), pipelines.sd(), seeds=3).images[0]
    few = compared(pipelines.sd(), pipelines.sd(), seeds=1, most=1).images[0]
    torch.testing.assert_close(few[0, 0], many[0, 0], atol=1e-5, rtol=1e-5)
    assert len({image.numpy().tobytes() for image in many.flatten(0, 1)}) == 6
    assert sizes == [4, 2, 4, 2, 1, 1]


class Process:
    """What `draw` asks of an accelerator, by threads that wait for each other."""

    def __init__(self, rank, table, barrier):
        self.process_index, self.num_processes, self.table, self.barrier = rank, len(table), table, barrier

    def gather(self, images):
        self.table[self.process_index] = images
        self.barrier.wait(60)
        together = torch.cat(self.table)
        self.barrier.wait(60)
        return together


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_draw_what_one_draws(ranks):
    denoiser = open_denoiser(pipelines.sd(), 16)
    policy, rows = Policy(denoiser, denoiser.dynamics(4)), pipelines.rows("sd")
    table, barrier = [None] * ranks, threading.Barrier(ranks)
    with ThreadPoolExecutor(ranks) as pool:
        each = [
            pool.submit(sample_images, policy, rows, 3, 0, 2, Process(r, table, barrier))
            for r in range(ranks)
        ]
    alone = sample_images(policy, rows, 3, 0, 4, None)
    for found in each:
        torch.testing.assert_close(found.result(), alone, atol=1e-5, rtol=1e-5)


def test_the_interval_is_that_of_scipys_paired_t_test():
    rng = np.random.default_rng(0)
    before = rng.normal(size=12)
    after = before + rng.normal(0.3, 1, 12)
    theirs = ttest_rel(after, before).confidence_interval(0.95)
    assert paired_interval(before, after) == pytest.approx((theirs.low, theirs.high))


def test_few_prompts_are_said_to_be_few(caplog):
    compared(pipelines.sd(), pipelines.sd(seed=1), seeds=1, steps=1)
    assert "2 prompts: intervals are right only if the differences are about normal" in caplog.text


@pytest.mark.parametrize("faulty", [{"most": 0}, {"seeds": 0}, {"steps": 0}, {"batch_size": 0}, {"most": -1}])
def test_numbers_below_1_are_refused(faulty):
    ((name, value),) = faulty.items()
    with pytest.raises(InputError, match=f"{name}={value}: expected at least 1"):
        compared(pipelines.sd(), pipelines.sd(seed=1), **faulty)


def test_equal_rewards_before_have_no_deviation_to_count_in():
    found = Comparison(["a"], {"r": np.array([[0.5]])}, {"r": np.array([[0.6]])}, None, (torch.zeros(1),) * 2)
    assert np.isnan(found.rows()[0]["in base deviations"])


def test_the_win_rate_counts_equals_half():
    assert win_rate(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 2.0, 5.0])) == 0.625


def test_diversity_by_hand():
    # 1 + image is 2 in one half and 1 in the other: the cosine is 2 * (2 * 1) / (2^2 + 1^2) = 0.8.
    first, second = torch.zeros(3, 16, 16), torch.zeros(3, 16, 16)
    first[:, :8], second[:, 8:] = 1, 1
    pairs = torch.stack([torch.stack([first, second]), torch.stack([second, first])])
    assert diversity(pairs, None) == pytest.approx(0.2, abs=1e-5)
    # One prompt's are equal, and the other's are: no diversity, however far the prompts are apart.
    alone = torch.stack([torch.stack([first, first]), torch.stack([second, second])])
    assert diversity(alone, None) == pytest.approx(0, abs=1e-6)
    # All images are equal, which is the least diversity.
    assert diversity(first.expand(2, 3, -1, -1, -1), None) == pytest.approx(0, abs=1e-6)


def test_over_optimisation_is_reward_up_and_held_out_down():
    assert overoptimized([0.0, 1.0, 2.0], [2.0, 1.0, 0.0], 2)
    assert not overoptimized([0.0, 1.0, 2.0], [2.0, 1.0, 1.5], 2)
    assert not overoptimized([0.0, 1.0, 0.5], [2.0, 1.0, 0.0], 2)
    assert not overoptimized([0.0, 1.0], [2.0, 1.0], 2)
    assert not overoptimized([0.0, 1.0, 2.0], [2.0, 1.0, 0.0], 0)


def darkness(pixels, prompts):
    return -brightness(pixels, prompts)


def test_a_training_that_is_fooled_stops(tmp_path):
    tune(
        pipelines.sd(),
        PROMPTS,
        reward=brightness,
        output=tmp_path / "out",
        resolution=16,
        steps=4,
        gradient={"first_step": 2, "last_step": 3},
        updates=40,
        batch_size=4,
        micro_batch=4,
        learning_rate=3e-3,
        target=None,
        reward_loss_weight=1.0,
        precision="float32",
        evaluate_every=2,
        evaluation={"held_out": "test_compare:darkness", "count": 2, "batch_size": 4, "patience": 2},
    )
    card = (tmp_path / "out/README.md").read_text()
    assert "stopped after update 4" in card
    assert "the reward rose" in card


def test_two_sizes_of_noise_are_refused():
    small = pipelines.sd()
    large = pipelines.sd()
    large.unet.register_to_config(sample_size=16)
    with pytest.raises(InputError, match="noise of different shapes"):
        compared(small, large, resolution=None)


def test_the_command_writes_a_page_and_does_not_write_over_it(tmp_path):
    for name, seed in (("base", 0), ("tuned", 1)):
        pipelines.sd(seed=seed).save_pretrained(tmp_path / name)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    command = [sys.executable, "-m", "imagereward", "compare", tmp_path / "base", tmp_path / "tuned"]
    options = ["--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "page.html", "--steps", "3"]
    judge = ["--model", "imagereward.shapes.rewards:faithfulness", "--device", "cpu"]
    arguments = [str(part) for part in (*command, *options, *judge, "--resolution", "32")]
    first = subprocess.run(arguments, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "win rate" in first.stdout
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure>") == 2 * 2 * len(PROMPTS)
    assert all(prompt in page for prompt in PROMPTS)
    assert not re.findall(r"https?://|<script|@import|url\(|<link", page)
    again = subprocess.run(arguments, capture_output=True, text=True)
    assert again.returncode == 1
    assert "exists" in again.stderr
