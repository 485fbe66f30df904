"""GRPO: the loss and its gradient against closed forms, ratios of exactly 1, runs through the public door."""

import json
import math

import pipelines
import pytest
import torch
from test_refl import NO_FILES, PROMPTS, brightness, plan_of, policy_of
from torch.optim.optimizer import register_optimizer_step_pre_hook

from imagereward.errors import InputError, NonFiniteLossError
from imagereward.images.preprocess import Preprocess
from imagereward.tuning import tune
from imagereward.tuning.data.image_pairs import ShapesPairs
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.requests import Request
from imagereward.tuning.objectives.clipping import centred_log_ratio, clipped_loss
from imagereward.tuning.objectives.grpo import GRPO, KL, GRPOConfig
from imagereward.tuning.objectives.sft import SFT, PairsConfig
from imagereward.tuning.objectives.weighted import Weighted
from imagereward.tuning.policy.trainable import LoRA, trainable_parameters
from imagereward.tuning.rewards.scoring import ScoringConfig
from imagereward.tuning.rewards.weighted import open_rewards
from imagereward.tuning.rollouts.latent_images import LatentImages
from imagereward.tuning.rollouts.window import Window
from imagereward.tuning.sampling.base import Noise
from imagereward.tuning.trainer.accelerate_setup import make_accelerator
from imagereward.tuning.trainer.trainer import Trainer
from imagereward.tuning.trainer_config import TrainerConfig

STEPS = 4
NOISE = {
    "flow_grpo": Noise(kind="flow_grpo", level=0.7),
    "constant": Noise(kind="constant", level=0.3),
    "table": Noise(kind="table", table=(0.5, 0.4, 0.3, 0.2)),
    "cps": Noise(kind="cps", level=0.8),
}
DDIM = Noise(kind="ddim")
FEW = {"updates": 2, "batch_size": 4, "micro_batch": 2, "steps": STEPS, "resolution": 16}


def noise_for(family):
    return DDIM if family in ("sd", "sdxl", "sd_inpaint") else NOISE["flow_grpo"]


def noise_table(noise):
    return {key: value for key, value in noise.model_dump().items() if value}


def grpo_of(family="sd3", reward=brightness, **options):
    values = {"noise": noise_for(family), "group": 2, "batch_size": 4, "micro_batch": 2}
    values |= {"scoring": ScoringConfig(wait=0.0), **options}
    config = GRPOConfig(**NO_FILES, prompts="", steps=STEPS, **values)
    return GRPO(config, pipelines.rows(family), open_rewards(reward))


def small(family="sd3", **options):
    return policy_of(family, steps=STEPS, **options)


def first_step(objective, policy, update=0):
    return next(objective.minibatches(policy, plan_of(objective, update)))


def moved(policy, by=1e-3):
    with torch.no_grad():
        for value in trainable_parameters(policy.denoiser.network).values():
            value += by * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))


# Formulas.


def test_the_clipped_loss_by_hand():
    ratio = torch.tensor([0.8, 1.0, 1.3, 0.8, 1.3])
    worth = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])
    expected = [-0.8, -1.0, -1.1, 0.9, 1.3]
    assert clipped_loss(ratio, worth, 0.1).tolist() == pytest.approx(expected)


def test_beyond_the_clip_there_is_no_gradient():
    ratio = torch.tensor([0.8, 1.3, 0.8, 1.3], requires_grad=True)
    clipped_loss(ratio, torch.tensor([1.0, 1, -1, -1]), 0.1).sum().backward()
    assert ratio.grad.tolist() == [-1, 0, 0, 1]


def test_a_guarded_ratio_is_that_of_the_paper():
    objective, policy = grpo_of(guard=True, window=Window(first=1)), small()
    batch = first_step(objective, policy)[0]
    moved(policy)
    noisy, x, at, kept = objective.noisy(policy), batch.before, batch.step_index, batch.trajectories
    step = noisy.step(x, policy.predict(x, at, kept.condition), at, next=batch.after)
    old = kept.means[:, batch.window_step]
    away = ((step.mean - old) ** 2).mean((1, 2, 3))
    std = step.std.flatten()
    plain = step.logp - kept.logps[:, batch.window_step]
    expected = (plain + away / (2 * std**2)) * std
    torch.testing.assert_close(centred_log_ratio(plain, step, old), expected)
    # Of dlogp only the part that the noise decides is left: (mean - old) . z / n.
    z = (batch.after - old) / step.std
    torch.testing.assert_close(expected, ((step.mean - old) * z).mean((1, 2, 3)), atol=1e-6, rtol=1e-3)
    i = int(at[0])
    dt = float(policy.dynamics.sigmas_N1[i] - policy.dynamics.sigmas_N1[i + 1])
    loss, _ = objective.loss(policy, batch)
    torch.testing.assert_close(loss, (clipped_loss(expected.exp(), batch.advantages, 1e-4) / dt).mean())


@pytest.mark.parametrize("form", ["true", "published"])
def test_the_kl_is_that_of_two_normals_in_either_form(form):
    policy = small(lora=LoRA(rank=2, init="default"), base=True)
    objective = grpo_of(kl=KL(form=form, beta=0.5))
    batch = first_step(objective, policy)[1]
    at_first = objective.loss(policy, batch)[1]["kl"]
    moved(policy, 0.1)
    loss, metrics = objective.loss(policy, batch)
    noisy, x, at, kept = objective.noisy(policy), batch.before, batch.step_index, batch.trajectories
    step = noisy.step(x, policy.predict(x, at, kept.condition), at, next=batch.after)
    with policy.using("reference"):
        base = noisy.step(x, policy.predict(x, at, kept.condition), at, next=batch.after)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(step.mean, step.std), normal(base.mean, step.std)).mean()
    assert at_first == 0
    torch.testing.assert_close(metrics["kl"], kl.detach())
    i = int(at[0])
    sigma, after = (float(policy.dynamics.sigmas_N1[k]) for k in (i, i + 1))
    rate = 0.7 * math.sqrt(sigma / (1 - sigma))
    if form == "published":  # without the length of the step
        kl = ((step.mean - base.mean) ** 2 / (2 * rate**2)).mean()
    ratio = (step.logp - kept.logps[:, 1]).exp()
    expected = clipped_loss(ratio, batch.advantages, 1e-4).mean() + 0.5 * kl
    torch.testing.assert_close(loss, expected)
    assert after < sigma


def test_at_the_start_the_gradient_is_that_of_reinforce():
    """With ratios of 1 it is -mean of A times the gradient of log p."""
    policy = small()
    objective = grpo_of()
    batch = first_step(objective, policy)[1]
    objective.loss(policy, batch)[0].backward()
    weight = policy.denoiser.network.proj_out.weight
    ours, weight.grad = weight.grad, None
    noisy, x, at = objective.noisy(policy), batch.before, batch.step_index
    step = noisy.step(x, policy.predict(x, at, batch.trajectories.condition), at)
    logp = torch.distributions.Normal(step.mean, step.std).log_prob(batch.after).mean((1, 2, 3))
    (-(batch.advantages * logp).mean()).backward()
    torch.testing.assert_close(ours, weight.grad)
    assert ours.abs().max() > 0


# Ratios.


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*NOISE, "ddim"])
def test_before_anything_is_learned_every_ratio_is_one(name, storage):
    family = "sd" if name == "ddim" else "sd3"
    policy = small(family, guidance=2.0)
    noise = DDIM if name == "ddim" else NOISE[name]
    objective = grpo_of(family, noise=noise, storage=storage, clip_ratio=1e-9)
    for batch in first_step(objective, policy):
        _, metrics = objective.loss(policy, batch)
        assert metrics["ratio"] == 1
        assert metrics["clipped"] == 0  # of every sample: no float32 but 1 is so near 1


def test_the_ratio_is_one_after_batches_have_lost_some_of_their_samples():
    def only_for_circles(pixels, prompts):  # of the other prompts all rewards are equal
        return brightness(pixels, prompts) * torch.tensor(["circle" in prompt for prompt in prompts])

    policy, objective = small(), grpo_of(reward=only_for_circles, micro_batch=3, batch_size=6)
    batches = first_step(objective, policy)
    assert 0 < sum(int(batch.valid.sum()) for batch in batches) < sum(len(batch.valid) for batch in batches)
    for batch in batches:
        assert objective.loss(policy, batch)[1]["ratio"] == 1


# What is learned from.


def test_groups_whose_rewards_are_all_the_same_give_no_gradient(caplog):
    policy, objective = small(base=True), grpo_of(reward=constant, kl=KL(form="true", beta=1.0))
    assert list(objective.minibatches(policy, plan_of(objective))) == []
    assert "update 1: no group has two different rewards" in caplog.text


def constant(pixels, prompts):
    return torch.ones(len(pixels))


def test_what_does_not_count_in_a_batch_has_no_gradient():
    policy, objective = small(), grpo_of()
    batch = first_step(objective, policy)[0]
    halved = batch._replace(valid=torch.tensor([True, False]))
    objective.loss(policy, halved)[0].backward()
    weight = policy.denoiser.network.proj_out.weight
    ours, weight.grad = weight.grad, None
    nothing = batch._replace(advantages=batch.advantages * torch.tensor([1.0, 0.0]))
    (2 * objective.loss(policy, nothing)[0]).backward()
    torch.testing.assert_close(ours, weight.grad)


def test_the_same_start_gives_every_image_of_a_group_the_same_first_noise():
    for same in (True, False):
        objective, policy = grpo_of(shared_initial_noise=same), small()
        kept = first_step(objective, policy)[0].trajectories
        assert torch.equal(kept.latents[0, 0], kept.latents[1, 0]) == same
        assert not torch.equal(kept.latents[0, 1], kept.latents[1, 1])


def test_a_reward_sees_the_metadata_of_its_row():
    seen = []

    def counting(pixels, prompts, rows):
        seen.extend(rows)
        return brightness(pixels, prompts) * torch.tensor([row.metadata["count"] for row in rows])

    objective, policy = grpo_of(reward=counting), small()
    objective.rows = [Request(prompt, metadata={"count": i}) for i, prompt in enumerate(PROMPTS)]
    first_step(objective, policy)
    assert len(seen) == 4
    assert all(row.metadata["count"] == PROMPTS.index(row.prompt) for row in seen)


def test_images_of_one_picture_are_a_group():
    """Kontext: a group is a row, so a prompt with two source images is two groups."""
    rows = [Request("a red circle", image=pipelines.pictures(seed)["image"]) for seed in range(2)]
    objective, policy = grpo_of("flux_kontext"), small("flux_kontext")
    objective.rows = rows
    beside = [batch.trajectories.condition.tensors["beside"] for batch in first_step(objective, policy)]
    chunks = [beside[0], beside[-1]]
    assert all(torch.equal(each[0], each[1]) for each in chunks)
    assert not torch.equal(chunks[0][0], chunks[1][0])


# Runs.


def run(output, family="sd3", reward=brightness, **changes):
    noise = noise_table(noise_for(family))
    values = {
        "recipe": "sd3/grpo" if noise["kind"] != "ddim" else "sd15/grpo",
        **FEW,
        "group": 2,
        "noise": noise,
        "optimizer_steps": 1,
        "learning_rate": 1e-3,
        "guidance": 1.0,
        "precision": "float32",
        "kl": None,
        "lora": None,
        "ema": 0.0,
        "scoring": {"wait": 0.0},
        "evaluation": {"held_out": "", "count": 2, "batch_size": 2, "steps": 0},
    }
    return tune(
        pipelines.FAMILIES[family](),
        pipelines.rows(family),
        reward=reward,
        output=output,
        **(values | changes),
    )


def test_the_reward_goes_up(tmp_path):
    run(tmp_path / "out", updates=12, batch_size=16, micro_batch=8, group=8, learning_rate=3e-3)
    history = json.loads((tmp_path / "out/history.json").read_text())
    rewards = [entry["evaluation/reward"] for entry in history if "evaluation/reward" in entry]
    assert rewards[-1] > rewards[0] + 0.01


def test_a_run_says_what_it_did(tmp_path):
    run(tmp_path / "out", kl={"form": "true", "beta": 0.1}, optimizer_steps=2, updates=1)
    (entry,) = [e for e in json.loads((tmp_path / "out/history.json").read_text()) if "loss" in e]
    assert entry["ratio"] == pytest.approx(1, abs=1e-2)
    assert entry["failed"] == 0
    assert entry["counted"] == 1
    assert {"reward", "reward/brightness", "clipped", "kl", "gradient_norm"} <= entry.keys()


def test_an_update_that_teaches_nothing_says_what_failed(tmp_path):
    def one_of_four(pixels, prompts):
        each = torch.arange(len(pixels)) % 4 == 0
        return torch.where(each, brightness(pixels, prompts), torch.nan)

    scoring = {"retries": 0, "wait": 0.0}
    run(
        tmp_path / "out", reward=one_of_four, updates=1, batch_size=8, micro_batch=4, group=4, scoring=scoring
    )
    history = json.loads((tmp_path / "out/history.json").read_text())
    (entry,) = [entry for entry in history if "learning_rate" in entry]
    assert (entry["failed"], entry["counted"]) == (6, 0)
    assert {"reward", "reward/one_of_four"} <= entry.keys()
    assert "loss" not in entry


def test_beside_a_plain_objective_either_learns_where_it_has_steps(tmp_path):
    """GRPO with two steps of the optimizer an update, SFT with one, and an update in which GRPO has none."""
    policy, grpo = small(), grpo_of(optimizer_steps=2)
    pairs = ShapesPairs(4, 0, Preprocess(16), 1)
    latents = LatentImages(pairs, policy.denoiser.autoencoder, None)
    sft = SFT(PairsConfig(data="shapes"), latents, batch_size=2)
    both = Weighted({"grpo": (0.9, grpo), "sft": (0.1, sft)})
    config = TrainerConfig(updates=2, batch_size=4, micro_batch=2, evaluate_every=1)
    loop, weights = Trainer(policy, both, config, tmp_path, make_accelerator(config, tmp_path)), []

    def evaluate(loop, update):
        weights.append(policy.denoiser.network.proj_out.weight.clone())
        if update == 1:
            grpo.rewards = open_rewards(constant)

    loop.run(evaluate)
    first, second = (entry for entry in loop.history if "loss" in entry)
    assert first["sft/error"] > 0
    assert first["counted"] == 1
    alone = sft.loss(small(), next(sft.minibatches(policy, UpdatePlan(0, 4, 2)))[0])[0]
    # A mean over its own step alone.
    assert first["sft/error"] == pytest.approx(float(alone.detach()), rel=1e-4)
    assert second["counted"] == 0
    assert second["sft/error"] > 0
    assert not torch.equal(weights[1], weights[2])


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = {"updates": 3, "save_every": 1, "window": {"size": 1}, "ema": 0.5, "ema_every": 1}
    run(whole, **options)

    def stop(*_):
        if (broken / "checkpoint-2").is_dir():
            raise KeyboardInterrupt

    hook = register_optimizer_step_pre_hook(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(broken, **options)
    finally:
        hook.remove()
    run(broken, **options, resume=True)
    for name in ("weights/learned.safetensors", "weights/ema.safetensors"):
        a, b = ((each / "checkpoint-3" / name).read_bytes() for each in (whole, broken))
        assert a == b


# Bad input.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"rank": 2, "dropout": 0.1}}, r"lora\.dropout: images are drawn without it"),
        ({"group": 3}, "group=3 does not divide batch_size=4"),
        ({"group": 1}, "group.*greater than or equal to 2"),
        ({"optimizer_steps": 3}, "optimizer_steps=3: an update has 2 micro-batches"),
        ({"window": {"size": 9}}, r"window\.size=9: from 0 to 2 are 3 steps"),
        ({"window": {"last": 4}}, r"window: 0\.\.4 of 4 sampling steps"),
        ({"noise": {"kind": "ddim"}}, "this is a flow model"),
        (
            {"noise": {"kind": "cps", "level": 0.8}, "window": {"last": 3}},
            r"steps \[3\] of 0..3 have no noise",
        ),
        ({"recipe": "sd15/grpo", "kl": {"beta": 0.04}}, r"kl\.form"),
        ({"windw": {}}, "windw is no key; did you mean 'window'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_grpo_without_a_reward_is_refused(tmp_path):
    with pytest.raises(InputError, match='reward="": GRPO needs one'):
        run(tmp_path / "out", reward="")


def test_an_advantage_that_is_no_number_stops_with_the_update_and_the_prompts(tmp_path, monkeypatch):
    from imagereward.tuning.objectives import sampled

    def spoiled(*arguments):
        found = real(*arguments)
        return found._replace(advantages=found.advantages * math.nan)

    real = sampled.group_advantages
    monkeypatch.setattr(sampled, "group_advantages", spoiled)
    with pytest.raises(NonFiniteLossError, match=r"update 1: its loss is nan, with the prompts \['.*'\]"):
        run(tmp_path / "out")


def test_more_processes_than_chunks_are_refused_by_all_of_them():
    objective = grpo_of(batch_size=2)
    for rank in range(2):
        with pytest.raises(InputError, match="only 1 of 2 processes would draw samples; expected a larger"):
            next(objective.minibatches(None, plan_of(objective, 0, rank, 2)))
