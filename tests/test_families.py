"""Every family draws as diffusers does, learns by ReFL, is saved and loaded, and asks for its pictures."""

import pipelines
import pytest
import torch
from diffusers import FluxPipeline
from test_refl import brightness, refl_of, settings
from transformers import T5EncoderModel

from imagereward.precision import cast, unrounded
from imagereward.tuning import tune
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.requests import Request
from imagereward.tuning.data.seeding import noise_for_samples
from imagereward.tuning.families.condition import Condition
from imagereward.tuning.families.flux import pack, places_of, unpack
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.policy.trainable import LoRA, set_trainable, trainable_parameters
from imagereward.tuning.sampling.base import Noise
from imagereward.tuning.sampling.flow import Flow

STEPS = 4
SIDE = pipelines.SIDE
WITH_PICTURES = pipelines.INPUTS
PACKED = ("flux", "flux_kontext", "flux_fill")


def certain(vae):
    """The same autoencoder with posteriors as good as their means: diffusers samples some of them."""
    last = vae.quant_conv if vae.quant_conv is not None else vae.encoder.conv_out
    with torch.no_grad():
        last.weight[pipelines.CHANNELS :] = 0
        last.bias[pipelines.CHANNELS :] = -100


def policy_of(pipeline, guidance=1.0, steps=STEPS):
    denoiser = open_denoiser(pipeline, SIDE)
    return Policy(denoiser, denoiser.dynamics(steps), guidance)


def drawn(pipeline, rows, guidance=1.0):
    policy = policy_of(pipeline, guidance)
    noise = noise_for_samples(range(len(rows)), policy.denoiser.autoencoder.shape, 0)
    return policy.sample(policy.denoiser.encode(rows), noise)


def drawn_by_diffusers(pipeline, family, rows, guidance):
    noise = noise_for_samples(range(len(rows)), (pipelines.CHANNELS, SIDE // 2, SIDE // 2), 0)
    options = {}
    if family in PACKED:
        noise = FluxPipeline._pack_latents(noise, *noise.shape)
    if family in WITH_PICTURES:
        options["image"] = [row.image for row in rows]
    if "mask" in WITH_PICTURES.get(family, ()):
        options["mask_image"] = [row.mask for row in rows]
    if family == "sd3" and pipeline.tokenizer_3 is not None:
        options["max_sequence_length"] = pipeline.tokenizer_3.model_max_length
    if family == "flux_kontext":
        options |= {"_auto_resize": False, "max_area": SIDE**2}
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt=[getattr(row, "prompt", row) for row in rows],
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=noise,
        output_type="pt",
        **options,
    ).images


@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_it_draws_as_diffusers_does(family):
    pipeline = pipelines.FAMILIES[family]()
    certain(pipeline.vae)
    rows = pipelines.rows(family, 2)
    ours, theirs = drawn(pipeline, rows, 3.0), drawn_by_diffusers(pipeline, family, rows, 3.0)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (drawn(pipeline, rows, 1.0) - ours).abs().max() > 1e-3  # guidance is felt


def test_sd3_without_t5_draws_as_diffusers_does():
    pipeline, rows = pipelines.sd3(without=(3,)), pipelines.rows("sd3", 2)
    theirs = drawn_by_diffusers(pipeline, "sd3", rows, 3.0)
    torch.testing.assert_close(drawn(pipeline, rows, 3.0), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("without", [(1,), (2,), (1, 3), (1, 2), (1, 2, 3)])
def test_what_a_missing_encoder_of_sd3_would_say_is_zero(without):
    whole = policy_of(pipelines.sd3()).denoiser.encode(pipelines.PROMPTS).tensors
    part = policy_of(pipelines.sd3(without=without)).denoiser.encode(pipelines.PROMPTS).tensors
    length, width = pipelines.tokenizer().model_max_length, pipelines.WIDTH
    if {1, 2} <= set(without):
        length = 77  # there is no tokenizer to say how many
    words, pooled = part["encoder_hidden_states"], part["pooled_projections"]
    for number, columns in ((1, slice(0, width)), (2, slice(width, 2 * width))):
        expected = 0 if number in without else 1
        for ours, theirs in (
            (words[:, :length, columns], whole["encoder_hidden_states"][:, :length, columns]),
            (pooled[:, columns], whole["pooled_projections"][:, columns]),
        ):
            torch.testing.assert_close(ours, theirs * expected if expected else torch.zeros_like(ours))
    if 3 in without:
        assert not words[:, length:].any()
    room = 256 if 3 in without else pipelines.tokenizer().model_max_length
    assert words.shape[1] == length + room


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_t5_is_cast_as_transformers_loads_it(dtype, tmp_path):
    made = pipelines.t5(32)
    made.save_pretrained(tmp_path)
    exact = cast(made, dtype)
    expected = T5EncoderModel.from_pretrained(tmp_path, dtype=dtype).state_dict()
    found = made.state_dict()
    assert {name: value.dtype for name, value in found.items()} == {
        name: value.dtype for name, value in expected.items()
    }
    assert any(".wo." in name and value.dtype == torch.float32 for name, value in found.items()) == (
        dtype == torch.float16
    )
    with unrounded(exact):
        assert {value.dtype for value in made.state_dict().values()} == {torch.float32}


def test_flux_that_takes_no_guidance_is_guided_without_a_prompt():
    pipeline, rows = pipelines.flux(guidance_embeds=False), pipelines.rows("flux", 2)
    pipeline.set_progress_bar_config(disable=True)
    noise = noise_for_samples(range(2), (pipelines.CHANNELS, SIDE // 2, SIDE // 2), 0)
    theirs = pipeline(
        rows,
        negative_prompt=["", ""],
        true_cfg_scale=3.0,
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        latents=FluxPipeline._pack_latents(noise, *noise.shape),
        output_type="pt",
    ).images
    torch.testing.assert_close(drawn(pipeline, rows, 3.0), theirs, atol=1e-4, rtol=1e-4)


def test_packing_is_that_of_diffusers():
    x = torch.randn(2, 5, 6, 8)
    packed = FluxPipeline._pack_latents(x, *x.shape)
    assert torch.equal(pack(x), packed)
    assert torch.equal(unpack(packed, (6, 8)), x)
    ids = FluxPipeline._prepare_latent_image_ids(2, 3, 4, "cpu", torch.float32)
    assert torch.equal(places_of(x, 0), ids)
    assert torch.equal(places_of(x, 1)[:, 1:], ids[:, 1:])
    assert (places_of(x, 1)[:, 0] == 1).all()


@pytest.mark.parametrize("family", WITH_PICTURES)
def test_pictures_are_felt(family):
    pipeline, rows = pipelines.FAMILIES[family](), pipelines.rows(family, 1)
    other = pipelines.pictures(5)
    for name in WITH_PICTURES[family]:
        changed = Request(**{**vars(rows[0]), name: other[name]})
        assert (drawn(pipeline, [changed]) - drawn(pipeline, rows)).abs().max() > 1e-4


@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_a_row_among_others_is_encoded_as_alone(family):
    denoiser = policy_of(pipelines.FAMILIES[family]()).denoiser
    rows = pipelines.rows(family)
    together, alone = denoiser.encode(rows), Condition.cat([denoiser.encode([row]) for row in rows])
    for name, value in together.tensors.items():
        torch.testing.assert_close(value, alone.tensors[name], atol=1e-5, rtol=1e-5)


# Learning.


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}])
@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_refl_moves_the_network_alone_and_what_is_saved_is_what_was_trained(family, lora, tmp_path):
    rows, start = pipelines.rows(family), pipelines.FAMILIES[family]()
    before = {
        name: part.state_dict()
        for name, part in pipelines.FAMILIES[family]().components.items()
        if (isinstance(part, torch.nn.Module))
    }
    changes = settings(lora=lora, weight_decay=0.0)  # what moves has been learned
    tuned = tune(start, rows, reward=brightness, output=tmp_path / "out", **changes)
    network = pipelines.network_of(tuned)
    for name, part in tuned.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        moved = pipelines.moved(part, before[name])
        learners = pipelines.learners(part, lora) if part is network else set()
        assert all(value.isfinite().all() for value in part.state_dict().values())
        assert bool(moved) == (part is network), name
        assert moved <= learners, name
        assert len(moved) >= 0.9 * len(learners), name
    if lora:
        again = pipelines.FAMILIES[family]()
        again.load_lora_weights(tmp_path / "out")
    else:
        again = type(tuned).from_pretrained(tmp_path / "out")
    expected = drawn(tuned, rows[:1], 2.0)
    torch.testing.assert_close(drawn(again, rows[:1], 2.0), expected, atol=1e-5, rtol=1e-5)
    assert (drawn(pipelines.FAMILIES[family](), rows[:1], 2.0) - expected).abs().max() > 1e-5


@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_its_lora_targets_are_all_there(family):
    denoiser = open_denoiser(pipelines.FAMILIES[family](), SIDE)
    set_trainable(denoiser, LoRA(rank=2))
    names = [name for name in trainable_parameters(denoiser.network) if "lora_A" in name]
    for target in denoiser.lora_targets:
        assert any(f".{target}.lora_A" in name for name in names), target


@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_lora_learns_in_float32_beside_a_bfloat16_network(family):
    pipeline = pipelines.FAMILIES[family]()
    pipeline.to(dtype=torch.bfloat16)
    pipeline.vae.float()
    policy = policy_of(pipeline, guidance=2.0, steps=6)
    set_trainable(policy.denoiser, LoRA(rank=2))
    objective = refl_of()
    objective.rows = pipelines.rows(family)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective.loss(policy, UpdatePlan(0, 4, 2).chunks[0])
    loss.backward()
    for name, value in policy.module.named_parameters():
        assert value.dtype == (torch.float32 if "lora" in name else torch.bfloat16)
        assert value.requires_grad == ("lora" in name)
    gradients = [
        value.grad for name, value in trainable_parameters(policy.module).items() if "lora_B" in name
    ]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


NOISE = {"ddim": Noise(kind="ddim"), "flow": Noise(kind="flow_grpo", level=0.7)}


def noisy(family, storage=None):
    policy = policy_of(pipelines.FAMILIES[family](), guidance=2.0)
    kind = "flow" if isinstance(policy.dynamics, Flow) else "ddim"
    policy.dynamics = policy.dynamics.with_noise(NOISE[kind], storage)
    return policy


@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_images_are_drawn_without_noise_whatever_steps_are_trained(family):
    policy, rows = noisy(family), pipelines.rows(family, 2)
    noise = noise_for_samples(range(2), policy.denoiser.autoencoder.shape, 0)
    with_noise = policy.sample(policy.denoiser.encode(rows), noise)
    assert torch.equal(with_noise, drawn(pipelines.FAMILIES[family](), rows, 2.0))


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_a_stored_trajectory_is_as_likely_as_when_it_was_drawn(family, storage):
    policy, rows = noisy(family, storage), pipelines.rows(family, 2)
    condition, shape = policy.denoiser.encode(rows), policy.denoiser.autoencoder.shape
    x = noise_for_samples(range(2), shape, 0).to(storage)
    stored = []
    with torch.no_grad():
        for i in range(STEPS):
            at = torch.tensor([i, i])
            step = policy.dynamics.step(
                x, policy.predict(x.float(), at, condition), at, noise_for_samples(range(2), shape, i, "step")
            )
            stored.append((x, step.next.to(storage), at, step.logp))
            x = stored[-1][1]
        for before, after, at, logp in stored:
            prediction = policy.predict(before.float(), at, condition)
            again = policy.dynamics.step(before, prediction, at, next=after).logp
            assert ((again - logp).exp() == 1).all()
