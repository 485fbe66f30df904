"""Noise prediction on pairs, its weights and caches, and the parts of a pipeline from nothing."""

import json

import numpy as np
import pipelines
import pytest
import torch
from diffusers.training_utils import compute_snr
from PIL import Image
from test_refl import PROMPTS, brightness, policy_of, settings
from torch.optim.optimizer import register_optimizer_step_pre_hook

from imagereward.errors import InputError
from imagereward.images.preprocess import Preprocess
from imagereward.tuning import tune
from imagereward.tuning.data.image_pairs import ImagePairs, ShapesPairs
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.from_scratch.autoencoder import kl_to_normal
from imagereward.tuning.objectives import config_class
from imagereward.tuning.objectives.base import Objective
from imagereward.tuning.objectives.sft import SFT, PairsConfig
from imagereward.tuning.objectives.weighted import Weighted
from imagereward.tuning.rollouts import latent_images
from imagereward.tuning.rollouts.latent_images import LatentImages
from imagereward.tuning.sampling.diffusion import Diffusion


def sft_of(policy, **options):
    data = LatentImages(ShapesPairs(6, 0, Preprocess(16)), policy.denoiser.autoencoder)
    return SFT(PairsConfig(data="shapes", **options), data)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights_are_the_published_ones(prediction):
    pipeline = pipelines.sd(prediction)
    dynamics, times = Diffusion.like(pipeline.scheduler, 10), torch.tensor([0, 10, 300, 700, 999])
    snr = compute_snr(pipeline.scheduler, times)
    expected = {
        "epsilon": snr.clamp(max=5) / snr,
        "v_prediction": snr.clamp(max=5) / (snr + 1),
        "sample": snr.clamp(max=5),
    }
    torch.testing.assert_close(dynamics.min_snr_weights(times, 5.0), expected[prediction])


def test_the_loss_is_the_error_of_the_prediction():
    policy = policy_of()
    objective, chunk = sft_of(policy), UpdatePlan(0, 4, 2).chunks[0]
    seen = {}
    original = policy.denoiser.predict

    def watched(x, time, condition, guidance=1.0):
        seen.update(x=x, time=time, output=original(x, time, condition, guidance))
        return seen["output"]

    policy.denoiser.predict = watched
    loss, _ = objective.loss(policy, chunk)
    # epsilon = (x - sqrt(alpha) x0) / sqrt(1 - alpha), with x0 the data's own latents.
    from imagereward.tuning.data.seeding import rows_for_samples

    rows = rows_for_samples(chunk.samples, len(objective.data), 0)
    clean = objective.data.latents(rows)
    alpha = policy.denoiser.pipeline.scheduler.alphas_cumprod[seen["time"]].view(-1, 1, 1, 1)
    noise = (seen["x"] - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    expected = torch.nn.functional.mse_loss(seen["output"], noise)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("drop", "least", "most"), [(None, 0, 0), (0.1, 5, 40), (0.5, 60, 140), (1, 200, 200)]
)
def test_prompts_are_dropped_as_often_as_asked(drop, least, most):
    policy = policy_of()
    texts = []
    encode = policy.denoiser.encode
    policy.denoiser.encode = lambda prompts: texts.extend(prompts) or encode(prompts)
    options = {} if drop is None else {"prompt_dropout": drop}
    objective = sft_of(policy, **options)
    with torch.no_grad():
        objective.loss(policy, UpdatePlan(0, 200, 200).chunks[0])
    assert least <= texts.count("") <= most


@pytest.mark.parametrize("zeros", [True, False])
def test_a_dropped_prompt_is_what_guidance_takes_for_none(zeros):
    """SDXL's pipelines have zeros for it, or the encoded empty prompt; sizes stay."""
    policy, seen = policy_of("sdxl"), {}
    policy.denoiser.pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    predict = policy.denoiser.predict

    def watched(x, time, condition, guidance=1.0):
        seen.update(condition.tensors)
        return predict(x, time, condition, guidance)

    policy.denoiser.predict = watched
    objective = sft_of(policy, prompt_dropout=0.5)
    encoded, chunk = [], UpdatePlan(0, 6, 6).chunks[0]
    encode = policy.denoiser.encode
    policy.denoiser.encode = lambda rows: encoded.extend(rows) or encode(rows)
    with torch.no_grad():
        objective.loss(policy, chunk)
    assert {"", *objective.prompts_in(chunk)} > {""}
    assert 0 < encoded.count("") < 6
    plain = encode(encoded).tensors
    assert plain.keys() == seen.keys()
    for name, tensor in seen.items():
        for row, prompt in enumerate(encoded):
            nothing = zeros and not prompt and name != "time_ids"
            expected = torch.zeros_like(tensor[row]) if nothing else plain[name][row]
            torch.testing.assert_close(tensor[row], expected)


@pytest.mark.parametrize("rank", range(3))
def test_a_process_without_pretraining_has_a_pass_that_counts_nothing(rank):
    """Also where the other objective has nothing to learn in the update."""

    class Nothing(Objective):
        rows = PROMPTS

        def minibatches(self, policy, plan):
            yield from ()

        def loss(self, policy, minibatch):
            raise NotImplementedError

        def prompts_in(self, minibatch):
            return []

    policy = policy_of()
    sft = sft_of(policy)
    sft.batch_size = 3
    both = Weighted({"nothing": (1.0, Nothing()), "pretraining": (1.0, sft)})
    (step,) = both.minibatches(policy, UpdatePlan(5, 12, 2, rank, 3))
    assert [part.share for part in step] == [[2 / 3], [1 / 3], [0.0]][rank]
    with torch.no_grad():
        loss, metrics = both.loss(policy, step[0])
    assert torch.isfinite(loss)
    assert metrics.keys() == {"pretraining/error"}


@pytest.mark.parametrize("kind", ["refl", "nft"])
def test_a_pretraining_batch_that_shards_cannot_share_is_refused_by_its_name(kind):
    values = {"model": "m", "output": "o", "prompts": "p", "batch_size": 48, "micro_batch": 4}
    config = config_class(kind)(**values, pretraining={"data": "shapes", "batch_size": 8})
    config.check_processes(4, sharded=False)
    refused = "pretraining.batch_size=8, micro_batch=4: .* 2 micro-batches for 4 processes; .* multiple of 4"
    with pytest.raises(InputError, match=refused):
        config.check_processes(4, sharded=True)


def test_the_first_process_fills_the_cache_and_the_others_wait(tmp_path, monkeypatch):
    latents, met = open_denoiser(pipelines.sd(), 16).autoencoder, []
    pairs = ShapesPairs(70, 0, Preprocess(16))
    monkeypatch.setattr(latent_images, "MET_AFTER", latent_images.ENCODED_AT_ONCE)
    monkeypatch.setattr(latent_images, "wait_for_everyone", lambda: met.append(1))
    LatentImages(pairs, latents, tmp_path).fill()
    (file,) = tmp_path.iterdir()
    assert len(met) == 4  # three batches, and the end
    monkeypatch.setattr(latent_images, "rank_and_ranks", lambda: (1, 2))
    monkeypatch.setattr(latent_images, "of_first_process", lambda value: False)
    monkeypatch.setattr(latents, "encode", None)
    other = tmp_path / "other"
    other.mkdir()

    def finish():
        met.append(1)
        if len(met) == 8:
            (other / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(latent_images, "wait_for_everyone", finish)
    data = LatentImages(pairs, latents, other)
    data.fill()
    assert len(met) == 8
    assert torch.equal(data.latents([69]), LatentImages(pairs, latents, tmp_path).latents([69]))


@pytest.mark.parametrize(("kept", "there"), [(False, True), (True, False)])
def test_the_encoder_leaves_the_device_only_if_nothing_is_encoded(kept, there, tmp_path):
    """A module beside the device is hidden from the autoencoder's parameters."""
    pipeline, seen = pipelines.sd(), []

    def look(*_):
        seen.append(any(name.startswith("encoder.") for name, _ in pipeline.vae.named_parameters()))

    changes = {"lora": {"rank": 2, "dropout": 0.1}, "latent_cache": str(tmp_path / "cache"), "updates": 1}
    hook = register_optimizer_step_pre_hook(look)
    try:
        tuned = tune(
            pipeline,
            output=tmp_path / "out",
            **{"recipe": "tiny/sft", "resolution": 16, "steps": 4, "batch_size": 2, "micro_batch": 2},
            pairs={"data": "shapes", "pairs": 4, "cache": kept},
            evaluation={"count": 1, "seeds": 1, "steps": 2, "batch_size": 2, "held_out": ""},
            **changes,
        )
    finally:
        hook.remove()
    assert seen == [there]
    assert any(name.startswith("encoder.") for name, _ in pipeline.vae.named_parameters())
    assert not any(module.training for module in tuned.unet.modules())
    assert len(list((tmp_path / "out").glob("latents-*"))) == kept


def test_cached_latents_are_those_of_the_images(tmp_path):
    latents = open_denoiser(pipelines.sd(), 16).autoencoder
    pairs = ShapesPairs(40, 0, Preprocess(16))
    plain, cached = LatentImages(pairs, latents), LatentImages(pairs, latents, tmp_path)
    torch.testing.assert_close(cached.latents([3, 39, 3]), plain.latents([3, 39, 3]), atol=1e-5, rtol=1e-5)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    LatentImages(pairs, latents, tmp_path).latents([0])
    assert file.stat().st_mtime_ns == written
    others = {
        "seed": LatentImages(ShapesPairs(40, 1, Preprocess(16)), latents, tmp_path),
        "weights": LatentImages(pairs, open_denoiser(pipelines.sd(seed=1), 16).autoencoder, tmp_path),
        "size": LatentImages(ShapesPairs(40, 0, Preprocess(32)), latents, tmp_path),
    }
    for count, other in enumerate(others.values(), 2):
        other.latents([0])
        assert len(list(tmp_path.iterdir())) == count


def test_prompts_of_shapes_are_those_of_their_images():
    pairs = ShapesPairs(20, 3, Preprocess(64), most_things=2)
    assert pairs.texts == [pairs[i]["prompt"] for i in range(20)]
    from imagereward.shapes import read

    assert all(read(text).total <= 2 for text in pairs.texts)


def test_objectives_add_up_with_weights():
    policy = policy_of()
    from test_refl import refl_of

    refl, sft = refl_of(), sft_of(policy)
    both = Weighted({"refl": (1.0, refl), "sft": (0.25, sft)})
    (step,) = both.minibatches(policy, UpdatePlan(0, 4, 2))
    assert sum(part.share for part in step) == pytest.approx(2)
    total = sum(both.loss(policy, part)[0] * part.share for part in step)
    expected = sum(refl.loss(policy, chunk)[0] * chunk.share for chunk in UpdatePlan(0, 4, 2).chunks)
    expected += 0.25 * sum(sft.loss(policy, chunk)[0] * chunk.share for chunk in UpdatePlan(0, 4, 2).chunks)
    torch.testing.assert_close(total, expected)
    names = {name for part in step for name in both.loss(policy, part)[1]}
    assert {"reward", "sft/error"} <= names


def test_refl_with_pretraining_logs_both(tmp_path):
    (tmp_path / "images").mkdir()
    records = []
    for i in range(3):
        Image.fromarray(np.full((20, 24, 3), 80 * i, np.uint8)).save(tmp_path / f"images/{i}.png")
        records.append({"text": PROMPTS[i], "image": f"images/{i}.png"})
    (tmp_path / "pairs.json").write_text(json.dumps(records))
    tune(
        pipelines.sd(),
        PROMPTS,
        reward=brightness,
        output=tmp_path / "out",
        **settings(pretraining={"data": str(tmp_path / "pairs.json"), "batch_size": 3, "min_snr_gamma": 5.0}),
    )
    history = json.loads((tmp_path / "out/history.json").read_text())
    logged = [entry for entry in history if "loss" in entry]
    assert len(logged) == 2
    assert all({"reward", "pretraining/error"} <= entry.keys() for entry in logged)


def test_pretraining_pairs_that_are_missing_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no\.json does not exist"):
        tune(
            pipelines.sd(),
            PROMPTS,
            reward=brightness,
            output=tmp_path / "out",
            **settings(pretraining={"data": str(tmp_path / "no.json")}),
        )
    assert not (tmp_path / "out").exists()


def test_a_set_of_pairs_knows_itself(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "pairs.json").write_text(json.dumps([{"text": "a cat", "image": "a.png"}]))
    first = ImagePairs(tmp_path / "pairs.json", Preprocess(16)).identity
    assert first == ImagePairs(tmp_path / "pairs.json", Preprocess(16)).identity
    Image.new("RGB", (17, 17)).save(tmp_path / "a.png")
    assert first != ImagePairs(tmp_path / "pairs.json", Preprocess(16)).identity


def test_the_kl_is_that_of_two_normals():
    mean, logvar = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(kl_to_normal(mean, logvar), expected.mean((1, 2, 3)))
