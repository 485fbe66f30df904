"""Fine-tuning generators by reward: gradients against closed forms, runs through the public doors."""

import json
import math
import os
import re
import resource
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import pipelines
import pytest
import torch
from conftest import small_scorer
from diffusers import EDMEulerScheduler
from diffusers.training_utils import EMAModel
from forked import run_forked
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import imagereward as RM
from imagereward.errors import CheckpointError, ImageRewardError, InputError, NonFiniteLossError
from imagereward.tuning import tune
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.seeding import noise_for_samples, random_generator, rows_for_samples
from imagereward.tuning.evaluation.evaluate import Evaluation
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.finetune import recompute
from imagereward.tuning.objectives.refl import Gradient, ReFL, ReFLConfig, denoise, draw_span, hinge
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.policy.snapshots import Snapshot
from imagereward.tuning.policy.trainable import LoRA, set_trainable, trainable_parameters
from imagereward.tuning.recipe import recipe_file
from imagereward.tuning.rewards.weighted import Rewards, open_rewards
from imagereward.tuning.trainer.checkpoint import (
    CheckpointContents,
    TrainingState,
    latest_state,
    load_checkpoint,
)
from imagereward.tuning.trainer.checkpoint_writer import CheckpointWriter
from imagereward.tuning.trainer.run_directory import check_run_directory, create_run_directory

PROMPTS = ["a red circle", "two blue squares", "a green star above a red square"]
STEPS = 6
NO_FILES = {"model": "", "output": ""}
LATE = {"mode": "one", "first_step": 3, "last_step": 5}


def brightness(pixels, prompts):
    return pixels.mean((1, 2, 3))


def darkness(pixels, prompts):
    return -pixels.mean((1, 2, 3))


def redness(pixels, prompts):
    return pixels[:, 0].mean((1, 2)) - pixels[:, 1].mean((1, 2))


def plan_of(objective, update=0, rank=0, ranks=1):
    """The update's plan, of as many samples as the objective is set to."""
    return UpdatePlan(update, objective.config.batch_size, objective.config.micro_batch, rank, ranks)


def policy_of(family="sd", dtype=torch.float32, lora=None, base=False, steps=STEPS, guidance=1.0):
    pipeline = pipelines.FAMILIES[family]()
    pipeline.to(dtype=dtype)
    denoiser = open_denoiser(pipeline, 16)
    set_trainable(denoiser, lora)
    if dtype == torch.float64:
        denoiser.network.double()
    snapshots = {"reference": Snapshot(denoiser.network)} if base else {}
    return Policy(denoiser, denoiser.dynamics(steps), guidance, snapshots)


def refl_of(reward=brightness, gradient=None, **options):
    values = {"batch_size": 4, "micro_batch": 2, "target": None, "reward_loss_weight": 1.0, **options}
    config = ReFLConfig(**NO_FILES, prompts="", steps=STEPS, gradient=gradient or LATE, **values)
    return ReFL(config, PROMPTS, open_rewards(reward))


def settings(**changes):
    values = {
        "recipe": "sd15/refl",
        "eta": 0.0,
        "ema": 0.0,
        "resolution": 16,
        "steps": STEPS,
        "gradient": LATE,
        "updates": 2,
        "batch_size": 4,
        "micro_batch": 2,
        "learning_rate": 1e-3,
        "precision": "float32",
        "evaluation": {"held_out": "", "count": 2, "batch_size": 2},
    }
    return {**values, **changes}


def run(output, family="sd", reward=brightness, prompts=PROMPTS, model=None, **changes):
    model = model or pipelines.FAMILIES[family]()
    return tune(model, prompts, reward=reward, output=output, **settings(**changes))


def weights(directory):
    return load_file(Path(directory) / "unet/diffusion_pytorch_model.safetensors")


# The gradient.


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_recomputing_keeps_far_less_for_the_same_gradients(family):
    def step(policy) -> tuple[int, list[torch.Tensor]]:
        kept: dict[int, int] = {}

        def keep(tensor):
            if not isinstance(tensor, torch.nn.Parameter):
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = objective.loss(policy, UpdatePlan(0, 4, 2).chunks[0])
        loss.backward()
        gradients = [value.grad.clone() for value in trainable_parameters(policy.denoiser.network).values()]
        policy.denoiser.network.zero_grad()
        return sum(kept.values()), gradients

    policy, objective = policy_of(family), refl_of(small_scorer("ImageReward"))
    plain, expected = step(policy)
    recompute(policy.denoiser, objective.rewards)
    recompute(policy.denoiser, objective.rewards)  # twice is as once
    less, gradients = step(policy)
    assert less < 0.27 * plain  # 0.3 if the scorer kept all it computes
    torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-7)


# Of layers of every kind.
MOVED_A_LITTLE = (
    "conv_in.weight",
    "time_embedding.linear_1.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight",
    "up_blocks.0.resnets.0.norm1.weight",
    "conv_out.bias",
)


@pytest.mark.parametrize("judge", ["brightness", "ImageReward"])
@pytest.mark.parametrize("kind", [LATE, {"mode": "last", "count": 2}, {"mode": "suffix"}])
def test_the_gradient_of_the_reward_is_that_of_finite_differences(kind, judge):
    # Only the span's steps carry gradient. A finite difference moves the weight in every step, so
    # the steps before are fed from a trajectory of their own.
    policy = policy_of(dtype=torch.float64)
    judges = {"brightness": brightness, "ImageReward": small_scorer("ImageReward").double()}
    reward = Rewards({judge: (1.0, judges[judge])})
    span = draw_span(Gradient(**kind), STEPS, random_generator(0))
    noise = noise_for_samples([0, 1], policy.denoiser.autoencoder.shape, 0).double()
    condition = policy.denoiser.encode(PROMPTS[:2])
    before = noise
    with torch.no_grad():
        for i in range(span.begin):
            rows = torch.full((2,), i)
            before = policy.dynamics.step(before, policy.predict(before, rows, condition), rows).next

    def scored():
        latents, _ = denoise(policy, noise, condition, span)
        return reward(policy.denoiser.autoencoder.decode(latents), PROMPTS[:2])[0].sum()

    @torch.no_grad()
    def scored_from_the_span():
        x = before
        for i in range(span.begin, span.end):
            rows = torch.full((2,), i)
            step = policy.dynamics.step(x, policy.predict(x, rows, condition), rows)
            x = step.x0 if span.predicted else step.next
        return reward(policy.denoiser.autoencoder.decode(x), PROMPTS[:2])[0].sum().item()

    scored().backward()
    step = 5e-4  # much smaller ones drown the smallest gradients, of 1e-7, in rounding
    for name in MOVED_A_LITTLE:
        weight = policy.denoiser.network.get_parameter(name)
        gradient, flat = weight.grad.view(-1), weight.data.view(-1)
        for place in gradient.abs().topk(2).indices:
            value, ends = float(flat[place]), []
            for moved in (value + step, value - step):
                flat[place] = moved
                ends.append(scored_from_the_span())
            flat[place] = value
            difference = (ends[0] - ends[1]) / (2 * step)
            assert abs(difference) > 1e-9, name
            assert float(gradient[place]) == pytest.approx(difference, rel=1e-5, abs=0), name


class ScaledByStep(torch.nn.Module):
    """A network whose output at every sampling step is scaled by a weight of that step alone."""

    def __init__(self, network, times):
        super().__init__()
        self.network, self.times = network, times
        self.scale = torch.nn.Parameter(torch.ones(len(times)))

    def forward(self, x, time_B, *args, **kwargs):
        at = int((self.times == time_B[0]).nonzero())
        (output,) = self.network(x, time_B, *args, **kwargs)
        return (output * self.scale[at],)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ({"mode": "one", "first_step": 4, "last_step": 4}, {4}),
        ({"mode": "last", "count": 1}, {5}),
        ({"mode": "last", "count": 3}, {3, 4, 5}),
        ({"mode": "last", "count": 6}, set(range(6))),
    ],
)
def test_only_the_chosen_steps_have_a_gradient(kind, expected):
    policy = policy_of()
    policy.module = ScaledByStep(policy.module, policy.dynamics.times_N)
    objective = refl_of(gradient=kind)
    objective.loss(policy, UpdatePlan(0, 4, 2).chunks[0])[0].backward()
    assert set(policy.module.scale.grad.nonzero().flatten().tolist()) == expected


def test_random_steps_are_drawn_from_the_whole_range():
    late = {draw_span(Gradient(**LATE), STEPS, random_generator(0, i)) for i in range(200)}
    assert {(span.begin, span.end) for span in late} == {(3, 4), (4, 5), (5, 6)}
    assert all(span.predicted for span in late)
    suffixes = {draw_span(Gradient(mode="suffix"), STEPS, random_generator(0, i)) for i in range(200)}
    assert {(span.begin, span.end) for span in suffixes} == {(i, 6) for i in range(6)}
    assert not any(span.predicted for span in suffixes)


def test_above_the_hinge_the_gradient_is_exactly_zero():
    policy = policy_of()
    objective = refl_of(target=-1.0)
    loss, metrics = objective.loss(policy, UpdatePlan(0, 4, 2).chunks[0])
    loss.backward()
    assert loss == 0
    assert metrics["reward"] > 0
    for value in trainable_parameters(policy.denoiser.network).values():
        assert value.grad is None or not value.grad.any()


def test_the_hinge_by_hand():
    rewards = torch.tensor([-1.0, 1.5, 2.0, 3.0])
    assert hinge(rewards, 2.0).tolist() == [3.0, 0.5, 0.0, 0.0]
    assert hinge(rewards, None).tolist() == [1.0, -1.5, -2.0, -3.0]


def test_scaling_the_loss_scales_the_gradient():
    gradients = []
    for scale in (1.0, 1e-3):
        policy = policy_of()
        refl_of(reward_loss_weight=scale).loss(policy, UpdatePlan(0, 4, 2).chunks[0])[0].backward()
        gradients.append(policy.denoiser.network.conv_in.weight.grad)
    torch.testing.assert_close(gradients[0] * 1e-3, gradients[1])


def test_the_gradient_needs_no_memory_of_the_scorers(scorers):
    scorer = scorers["ImageReward"]
    rewards = Rewards({"one": (1.0, scorer)})
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    total, each = rewards(images, PROMPTS[:2])
    total.sum().backward()
    assert images.grad.abs().max() > 0
    assert all(value.grad is None and not value.requires_grad for value in scorer.parameters())
    torch.testing.assert_close(each["one"], scorer.reward(images, PROMPTS[:2]))


def test_rewards_are_weighted_and_reported_one_by_one():
    images = torch.rand(2, 3, 8, 8)
    rewards = Rewards({"light": (2.0, brightness), "red": (-0.5, redness)})
    total, each = rewards(images, PROMPTS[:2])
    torch.testing.assert_close(each["light"], brightness(images, None))
    torch.testing.assert_close(total, 2 * each["light"] - 0.5 * each["red"])


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_the_distance_to_the_base_is_zero_at_first_and_grows(family, lora):
    policy = policy_of(family, lora=lora, base=True)
    chunk, objective = UpdatePlan(0, 4, 2).chunks[0], refl_of(reference_weight=1.0)
    at_first = objective.loss(policy, chunk)[1]["distance"]
    learned = trainable_parameters(policy.denoiser.network)
    with torch.no_grad():
        for value in learned.values():
            value += 0.1
    later = objective.loss(policy, chunk)[1]["distance"]
    assert at_first == 0
    assert later > 0
    assert trainable_parameters(policy.denoiser.network).keys() == learned.keys()


def test_the_distance_does_not_reach_into_the_base():
    policy = policy_of(base=True)
    refl_of(reference_weight=1.0).loss(policy, UpdatePlan(0, 4, 2).chunks[0])[0].backward()
    reference = policy.snapshots["reference"].weights
    assert not any(value.requires_grad for value in reference.values())
    for name, value in trainable_parameters(policy.denoiser.network).items():
        assert torch.equal(reference[name], value)


# What is drawn does not depend on who draws it.


def test_noise_belongs_to_the_sample():
    together = noise_for_samples([3, 4, 5], (2, 2), 7)
    assert torch.equal(together[1], noise_for_samples([4], (2, 2), 7)[0])
    assert not torch.equal(noise_for_samples([4], (2, 2), 8), noise_for_samples([4], (2, 2), 7))


def test_every_epoch_takes_every_row_once_in_an_order_of_its_own():
    first, second = rows_for_samples(range(10), 10, 0), rows_for_samples(range(10, 20), 10, 0)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_a_short_last_chunk_has_its_share():
    parts = UpdatePlan(3, 5, 2).chunks
    assert [part.samples for part in parts] == [(15, 16), (17, 18), (19,)]
    assert math.fsum(part.share for part in parts) == pytest.approx(1)


def test_chunks_of_any_size_give_the_same_gradient():
    # One step for all, so that only the cutting differs.
    kind, gradients = {"mode": "one", "first_step": 4, "last_step": 4}, []
    for micro_batch in (5, 2, 1):
        policy = policy_of(dtype=torch.float64)
        objective = refl_of(gradient=kind, batch_size=5, micro_batch=micro_batch)
        for chunk in next(objective.minibatches(policy, plan_of(objective, 1))):
            (objective.loss(policy, chunk)[0] * chunk.share).backward()
        gradients.append(policy.denoiser.network.conv_in.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


# Whole runs.


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_run_leaves_a_pipeline_that_draws_what_the_trained_one_draws(family, tmp_path):
    tuned = run(tmp_path / "out", family, updates=2)
    kind = type(tuned)
    again = kind.from_pretrained(tmp_path / "out")
    for name, value in tuned.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], value)
    untouched = pipelines.FAMILIES[family]()
    assert any(
        (value != untouched.unet.state_dict()[name]).any() for name, value in tuned.unet.state_dict().items()
    )
    for part in ("vae", "text_encoder"):
        for name, value in getattr(again, part).state_dict().items():
            assert torch.equal(value, getattr(untouched, part).state_dict()[name]), (part, name)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_lora_weights_load_into_the_base_and_give_the_trained_network(family, tmp_path):
    tuned = run(tmp_path / "out", family, lora={"rank": 2, "alpha": 4}, updates=3)
    assert not (tmp_path / "out/unet").exists()
    base = pipelines.FAMILIES[family]()
    base.load_lora_weights(tmp_path / "out")
    policies = [Policy(d := open_denoiser(each, 16), d.dynamics(STEPS)) for each in (tuned, base)]
    noise = noise_for_samples([0], policies[0].denoiser.autoencoder.shape, 0)
    drawn = [each.sample(each.denoiser.encode(PROMPTS[:1]), noise) for each in policies]
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-5, rtol=1e-5)
    plain = Policy(d := open_denoiser(pipelines.FAMILIES[family](), 16), d.dynamics(STEPS))
    assert (plain.sample(plain.denoiser.encode(PROMPTS[:1]), noise) - drawn[0]).abs().max() > 1e-4


def test_the_reward_goes_up(tmp_path):
    run(tmp_path / "out", updates=12, target=None, reward_loss_weight=1.0, learning_rate=3e-3)
    rewards = evaluations(tmp_path / "out", "reward")
    assert rewards[-1] > rewards[0] + 0.02


def evaluations(output, name):
    history = json.loads((output / "history.json").read_text())
    return [entry[f"evaluation/{name}"] for entry in history if f"evaluation/{name}" in entry]


def test_a_run_says_what_it_did(tmp_path):
    output = tmp_path / "out"
    run(output, updates=3, evaluate_every=2, save_every=1, keep_checkpoints=2)
    card = (output / "README.md").read_text()
    before, after = (evaluations(output, "reward")[i] for i in (0, -1))
    assert f"| reward | {before:.4f} | {after:.4f} |" in card
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    names = sorted(path.name for path in (output / "samples").iterdir())
    assert names == ["000000.png", "000002.png", "000003.png", "before.safetensors"]
    history = json.loads((output / "history.json").read_text())
    updates = [entry for entry in history if "loss" in entry]
    assert [entry["update"] for entry in updates] == [1, 2, 3]
    assert {"loss", "reward", "reward/brightness", "gradient_norm", "learning_rate"} <= updates[0].keys()


def check_same_checkpoint(one, other):
    """Weights, averages and moments are the same, to the last bit."""
    for name in ("weights/learned.safetensors", "weights/ema.safetensors"):
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(value, b[key]) for key, value in a.items())
    moments = [torch.load(each / "optimizer.pt", weights_only=True) for each in (one, other)]
    # As JSON, to which tuples are lists.
    assert json.dumps(moments[0]["param_groups"]) == json.dumps(moments[1]["param_groups"])
    a, b = (dict(leaves(each["state"])) for each in moments)
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[key]) for key, value in a.items())


def leaves(state, *path):
    """(path, tensor) of everything in nested dicts."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from leaves(value, *path, key)
        else:
            yield (*path, key), torch.as_tensor(value)


class Stop(Exception):
    """What a test stops a run by."""


@pytest.mark.parametrize("lora", [None, {"rank": 2, "dropout": 0.3}])
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(lora, tmp_path, monkeypatch):
    common = {
        "updates": 5,
        "save_every": 1,
        "evaluate_every": 2,
        "ema": 0.9,
        "schedule": "cosine",
        "warmup_updates": 1,
        "lora": lora,
    }
    whole, broken = tmp_path / "whole" / "out", tmp_path / "broken" / "out"

    def run_named(output, **more):
        return run(output, reward=brightness, **common, **more)

    run_named(whole)
    calls = 0
    original = Rewards.__call__

    def failing(self, pixels, prompts):
        nonlocal calls
        calls += pixels.requires_grad
        if calls > 7:  # one looks for the gradient, two an update
            raise Stop
        return original(self, pixels, prompts)

    monkeypatch.setattr(Rewards, "__call__", failing)
    with pytest.raises(Stop):
        run_named(broken)
    monkeypatch.undo()
    assert latest_state(broken).name == "checkpoint-3"
    # As run.json names its output, a run that moved is another run.
    resumed = run_named(broken, resume=True)
    assert resumed is not None
    check_same_checkpoint(whole / "checkpoint-5", broken / "checkpoint-5")
    assert (whole / "history.json").read_text() == (broken / "history.json").read_text()


@pytest.mark.parametrize("stops", [False, True])
def test_an_evaluation_that_fails_leaves_the_checkpoint_of_its_update(stops, tmp_path, monkeypatch):
    """And the resumed run has the history, and the reason to stop, of one whose evaluation did not fail."""
    held_out = "test_refl:darkness" if stops else "test_refl:brightness"
    watch = {"held_out": held_out, "patience": 1, "count": 2, "seeds": 1, "batch_size": 2}
    options = {"evaluation": watch, "evaluate_every": 2, "save_every": 2, "learning_rate": 1e-2, "ema": 0.9}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(whole, updates=4, **options)
    original = Evaluation.measure

    def failing(self, images, update):
        if update == 2:
            raise Stop
        return original(self, images, update)

    monkeypatch.setattr(Evaluation, "measure", failing)
    with pytest.raises(Stop):
        run(broken, updates=4, **options)
    assert latest_state(broken).name == "checkpoint-2"
    with pytest.raises(Stop):
        run(broken, updates=4, **options, resume=True)
    monkeypatch.undo()
    run(broken, updates=4, **options, resume=True)
    last = latest_state(whole)
    assert last.name == ("checkpoint-2" if stops else "checkpoint-4")
    check_same_checkpoint(last, broken / last.name)
    assert (whole / "history.json").read_text() == (broken / "history.json").read_text()
    monkeypatch.setattr(Evaluation, "measure", None)  # what is in the checkpoint is not evaluated again
    run(broken, updates=4, **options, resume=True)


def test_a_run_with_moments_in_eight_bits_resumes_as_if_it_had_not_stopped(tmp_path):
    pytest.importorskip("bitsandbytes", "0.50")  # those before have them on GPUs alone
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    options = {"optimizer": "adamw-8bit", "save_every": 2, "ema": 0.5, "learning_rate": 3e-3}
    run(whole, updates=4, **options)
    run(longer, updates=2, **options)
    run(longer, updates=4, **options, resume=True)
    check_same_checkpoint(whole / "checkpoint-4", longer / "checkpoint-4")
    state = torch.load(whole / "checkpoint-4/optimizer.pt", weights_only=True)["state"]
    assert any(path[-1] == "state1" and value.dtype == torch.uint8 for path, value in leaves(state))
    rewards = evaluations(whole, "reward")
    assert rewards[-1] > rewards[0]


def test_without_bitsandbytes_it_is_said_what_is_missing(tmp_path, monkeypatch):
    for name in ("bitsandbytes", "bitsandbytes.optim"):  # the second may have been imported before
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImageRewardError, match='optimizer="adamw-8bit" needs bitsandbytes: python -m pip'):
        run(tmp_path / "out", optimizer="adamw-8bit")
    assert not (tmp_path / "out").exists()


def test_a_run_can_go_on_for_longer_or_back_to_a_checkpoint(tmp_path):
    run(tmp_path / "whole", updates=3, save_every=1, ema=0.5)
    run(tmp_path / "longer", updates=2, save_every=2, ema=0.5)
    run(tmp_path / "longer", updates=3, save_every=2, ema=0.5, resume=True)
    longer = weights(tmp_path / "longer")
    assert all(torch.equal(value, longer[name]) for name, value in weights(tmp_path / "whole").items())
    with pytest.raises(CheckpointError, match="none of at most 1 updates; the last is checkpoint-3"):
        run(tmp_path / "longer", updates=1, save_every=2, ema=0.5, resume=True)
    back = run(tmp_path / "whole", updates=2, save_every=1, ema=0.5, resume=True)
    run(tmp_path / "short", updates=2, save_every=1, ema=0.5)
    short, saved = weights(tmp_path / "short"), weights(tmp_path / "whole")
    for name, value in back.unet.named_parameters():  # what is returned is what is saved: the averages
        assert torch.equal(value, short[name])
        assert torch.equal(value, saved[name])
    histories = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("whole", "short")]
    learned = [[entry for entry in history if "loss" in entry] for history in histories]
    assert learned[0] == learned[1]


def test_a_checkpoint_that_becomes_the_last_is_evaluated(tmp_path):
    out = tmp_path / "out"
    run(out, updates=4, save_every=1, evaluate_every=2)
    for _ in range(2):  # the second time, the evaluation is there
        run(out, updates=3, save_every=1, evaluate_every=2, resume=True)
        history = json.loads((out / "history.json").read_text())
        assert [entry["update"] for entry in history if "loss" not in entry] == [
            0,
            2,
            3,
        ]
    assert (out / "samples/000003.png").exists()


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "out"
    killed = run_forked(partial(train_and_die, at_step=3), broken, log=tmp_path / "log")
    assert killed.codes == [-9], killed.output
    assert latest_state(broken).name == "checkpoint-2"
    for output, resume in ((broken, True), (whole, False)):
        done = run_forked(partial(train_and_die, at_step=99, resume=resume), output, log=tmp_path / "log")
        assert done.codes == [0], done.output
    entries = [e["update"] for e in json.loads((broken / "history.json").read_text()) if "loss" in e]
    assert entries == [1, 2, 3, 4]
    assert (broken / "history.json").read_text() == (whole / "history.json").read_text()
    check_same_checkpoint(whole / "checkpoint-4", broken / "checkpoint-4")
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(broken).items())


def train_and_die(output, at_step, resume=False):
    """In a new process: train, and kill the process before this step of the optimizer."""
    steps = 0

    def count(*_):
        nonlocal steps
        steps += 1
        if steps == at_step:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_pre_hook(count)
    run(output, updates=4, save_every=1, ema=0.9, resume=resume, max_gradient_norm=1e6)


# Bad input.


def test_a_family_that_is_not_known_is_named(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model_index.json").write_text('{"_class_name": "CogVideoXPipeline"}')
    with pytest.raises(InputError, match=r"CogVideoXPipeline is no family .* known: StableDiffusionPipeline"):
        tune(tmp_path / "model", PROMPTS, reward=brightness, output=tmp_path / "out", **settings())


def test_a_directory_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"holds no diffusers pipeline; expected a directory with model_index\.json"
    ):
        tune(tmp_path, PROMPTS, reward=brightness, output=tmp_path / "out", **settings())
    with pytest.raises(CheckpointError, match="there is no such directory here"):
        tune(tmp_path / "absent", PROMPTS, reward=brightness, output=tmp_path / "out", **settings())


@pytest.mark.parametrize("resolution", [15, 1])
def test_a_resolution_that_the_autoencoder_cannot_take_is_refused(resolution, tmp_path):
    with pytest.raises(InputError, match=f"resolution={resolution}: .* multiples of 2"):
        run(tmp_path / "out", resolution=resolution)


def test_a_reward_that_reads_rows_is_followed_and_sees_records(tmp_path):
    seen = []

    def counting(pixels, prompts, rows):
        seen.extend(rows)
        return brightness(pixels, prompts) * torch.tensor([row.metadata.get("count", 1) for row in rows])

    run(
        tmp_path / "out", reward=counting, prompts=[PROMPTS[0], {"prompt": PROMPTS[1], "count": 2}], updates=1
    )
    assert {row.prompt: row.metadata for row in seen} == {PROMPTS[0]: {}, PROMPTS[1]: {"count": 2}}


def test_without_an_output_that_of_a_recipe_of_ones_own_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = recipe_file("sd15/refl_lora").read_text()
    Path("mine.toml").write_text('output = "here"\n' + shipped)
    values = {**settings(updates=1), "recipe": "mine.toml", "lora": {"rank": 2}}
    tune(pipelines.sd(), PROMPTS, reward=brightness, **values)
    assert Path("here/pytorch_lora_weights.safetensors").is_file()
    with pytest.raises(InputError, match="output is missing"):
        tune(pipelines.sd(), PROMPTS, reward=brightness, **{**values, "recipe": "sd15/refl_lora"})


def detached(pixels, prompts):
    return pixels.detach().mean((1, 2, 3))


def without_a_gradient(pixels, prompts):
    return torch.ones(len(pixels)) + 0 * pixels.detach().sum()


@pytest.mark.parametrize("reward", [detached, without_a_gradient])
def test_a_reward_without_gradient_is_refused(reward, tmp_path):
    with pytest.raises(InputError, match=f"reward {reward.__name__} is not differentiable"):
        run(tmp_path / "out", reward=reward)
    assert not (tmp_path / "out").exists()


def test_a_reward_of_the_wrong_shape_is_refused(tmp_path):
    def one_for_all(pixels, prompts):
        return pixels.mean()

    with pytest.raises(InputError, match="reward one_for_all gave"):
        run(tmp_path / "out", reward=one_for_all)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "prompts.txt", "does not exist"),
        ("", "prompts.txt", "holds no prompt"),
        ("[]", "prompts.json", "holds no prompt"),
        ('{"a": 1}', "prompts.json", "holds a dict; expected a list"),
        ('["a cat", 3]', "prompts.json", "record 1 has no prompt"),
        ('[{"words": "a cat"}]', "prompts.json", "record 0 has no prompt: .* prompt or text or caption"),
        ('["a cat", " "]', "prompts.json", "record 1 has no prompt"),
        ("{", "prompts.jsonl", "record 0 has no prompt: the line is not JSON"),
    ],
)
def test_prompts_that_are_missing_or_empty_are_named(content, name, message, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        run(tmp_path / "out", prompts=path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a cat\n\n a dog \n"),
        ("p.json", '["a cat", {"text": "a dog", "image": "x.png"}]'),
        ("p.jsonl", '{"prompt": "a cat"}\n\n"a dog"\n'),
    ],
)
def test_prompts_are_read_from_every_format(name, content, tmp_path):
    from imagereward.tuning.data.prompts import read_prompts

    (tmp_path / name).write_text(content)
    assert read_prompts(tmp_path / name) == ["a cat", "a dog"]


def test_an_unknown_key_names_the_nearest(tmp_path):
    with pytest.raises(InputError, match="learning_rat is no key; did you mean 'learning_rate'"):
        run(tmp_path / "out", learning_rat=1.0)
    with pytest.raises(InputError, match=r"gradient\.frist_step is no key; did you mean 'first_step'"):
        run(tmp_path / "out", gradient={"frist_step": 1})


def test_steps_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"gradient\.last_step=6: the last of 6 sampling steps is 5"):
        run(tmp_path / "out", gradient={"first_step": 3, "last_step": 6})
    with pytest.raises(InputError, match=r"gradient\.count=7: expected at most the 6"):
        run(tmp_path / "out", gradient={"mode": "last", "count": 7})
    with pytest.raises(InputError, match="first_step=5 is after last_step=4"):
        run(tmp_path / "out", gradient={"first_step": 5, "last_step": 4})


def test_an_output_that_holds_another_run_is_not_touched(tmp_path):
    run(tmp_path / "out", updates=1)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="already holds another run"):
        run(tmp_path / "out", updates=2)
    with pytest.raises(InputError, match="another config: steps was 6, is 7"):
        run(tmp_path / "out", updates=1, steps=7, resume=True)
    run(tmp_path / "cosine", updates=1, schedule="cosine")
    with pytest.raises(InputError, match="another config: updates was 1, is 2"):
        run(tmp_path / "cosine", updates=2, schedule="cosine", resume=True)
    with pytest.raises(InputError, match="reward was 'test_refl:brightness', is 'test_refl:redness'"):
        run(tmp_path / "out", updates=1, reward=redness, resume=True)
    with pytest.raises(InputError, match=r"another config: prompts was 'a list of \d, \w+', is 'a list of"):
        run(tmp_path / "out", updates=1, prompts=PROMPTS[::-1], resume=True)
    with pytest.raises(InputError, match="holds no run to resume"):
        run(tmp_path / "nothing", resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_a_run_with_another_config_is_told_of_without_passwords(tmp_path):
    config = {"reward": "http://me:secret@host:1"}
    create_run_directory(tmp_path / "out", config)
    with pytest.raises(
        InputError, match=r"reward was 'http://host:1', is 'http://host:2'; expected"
    ) as found:
        check_run_directory(tmp_path / "out", {"reward": "http://me:secret@host:2"}, resume=True)
    assert "secret" not in str(found.value)


def test_a_loss_that_is_no_number_stops_with_the_prompts_and_the_last_checkpoint(tmp_path):
    calls = 0

    def spoiled(pixels, prompts):
        nonlocal calls
        calls += pixels.requires_grad
        worth = brightness(pixels, prompts)
        return worth * (pixels.sum() * 0 + (1e38 if calls > 5 else 1)) * (1e38 if calls > 5 else 1)

    with pytest.raises(NonFiniteLossError) as caught:
        run(tmp_path / "out", reward=spoiled, updates=4, save_every=1)
    message = str(caught.value)
    assert "update 3" in message
    assert any(prompt in message for prompt in PROMPTS)
    assert "checkpoint-2" in message
    assert "learning_rate" in message


@pytest.mark.parametrize("when", [0, 2])
def test_a_network_that_overflows_is_said_to_and_by_a_scorer_too(when, tmp_path):
    def spoil(network, _):
        if when == 0 or (tmp_path / "out/checkpoint-1").is_dir():  # the first evaluation, or update 2
            network.conv_in.weight.data.fill_(math.nan)

    pipeline = pipelines.sd()
    pipeline.unet.register_forward_pre_hook(spoil)
    with pytest.raises(NonFiniteLossError) as caught:
        run(tmp_path / "out", model=pipeline, reward=small_scorer("ImageReward"), updates=3, save_every=1)
    message = str(caught.value)
    assert f"update {when}: the image drawn for '" in message
    if when:  # those of the minibatch
        assert re.search(r"with the prompts \['.*', '.*'\]", message)
    assert ("checkpoint-1" if when else "none") in message


def test_a_gradient_that_is_no_number_names_all_prompts_of_its_step(tmp_path):
    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.inf

    def steep(pixels, prompts):
        return brightness(Steep.apply(pixels), prompts)

    with pytest.raises(NonFiniteLossError, match="update 1: its gradient is nan") as caught:
        run(tmp_path / "out", reward=steep, prompts=PROMPTS[:2], batch_size=2, micro_batch=1)
    assert all(prompt in str(caught.value) for prompt in PROMPTS[:2])


def test_half_precision_is_not_of_the_autoencoder(tmp_path):
    pipeline = pipelines.sd()
    pipeline.save_pretrained(tmp_path / "base")
    opened = open_denoiser(tmp_path / "base", 16, torch.bfloat16)
    assert opened.network.dtype == torch.bfloat16
    for key, value in opened.autoencoder.vae.state_dict().items():
        assert torch.equal(value, pipeline.vae.state_dict()[key]), key


def test_a_mistake_leaves_no_trace_of_a_tracker(tmp_path):
    pytest.importorskip("tensorboard")
    with pytest.raises(InputError, match="resolution=15"):
        run(tmp_path / "out", trackers=["tensorboard"], resolution=15)
    assert not (tmp_path / "out").exists()
    run(tmp_path / "out", trackers=["tensorboard"], updates=1)
    assert list((tmp_path / "out").rglob("events.out.tfevents.*"))


def test_an_ensembles_components_are_logged_and_its_score_is_what_is_trained(tmp_path):
    parts = {small_scorer("ImageReward"): 1.0, small_scorer("HPS"): 0.5}
    both = RM.ensemble(parts, normalise={next(iter(parts)): (0.3, 2.0)})
    run(tmp_path / "out", reward=both, updates=1)
    history = json.loads((tmp_path / "out/history.json").read_text())
    first, trained = history[0], history[1]
    for entry, name in ((first, "evaluation/reward"), (trained, "reward")):
        parts = entry[f"{name}/ImageReward"], entry[f"{name}/HPS"]
        assert entry[name] == pytest.approx((parts[0] - 0.3) / 2 + 0.5 * parts[1], abs=1e-5)
    pixels = torch.rand(2, 3, 16, 16)
    total, _ = open_rewards(both)(pixels, PROMPTS[:2])
    torch.testing.assert_close(total, both.reward(pixels, PROMPTS[:2]))


def test_a_model_that_has_adapters_already_is_refused(tmp_path):
    tuned = run(tmp_path / "one", lora={"rank": 2}, updates=1)
    with pytest.raises(InputError, match=r"has adapters already; .*unload_lora_weights"):
        run(tmp_path / "two", model=tuned, lora={"rank": 2}, updates=1)


def test_a_pipeline_of_another_noise_or_scale_is_refused(tmp_path):
    pipeline = pipelines.sd()
    pipeline.scheduler = EDMEulerScheduler()
    with pytest.raises(InputError, match="of its EDMEulerScheduler, is not the variance-preserving one"):
        run(tmp_path / "out", model=pipeline)
    pipeline = pipelines.sd()
    pipeline.vae.register_to_config(latents_mean=[0.0] * 4)
    with pytest.raises(
        InputError, match="this autoencoder has 4 latents_mean and 0 latents_std: expected one of each"
    ):
        run(tmp_path / "out", model=pipeline)


@pytest.mark.parametrize(
    ("gradient", "fits"),
    [({}, False), ({"mode": "suffix"}, False), ({"mode": "last"}, True), ({"shared_by": 4}, True)],
    ids=str,
)
def test_sharded_processes_take_the_same_steps(gradient, fits):
    config = ReFLConfig(
        model="m", output="o", prompts="p", batch_size=4, micro_batch=1, gradient=Gradient(**gradient)
    )
    config.check_processes(2, sharded=False)
    if fits:
        config.check_processes(2, sharded=True)
    else:
        with pytest.raises(InputError, match=r"gradient\.shared_by=1: .* expected a multiple of 2"):
            config.check_processes(2, sharded=True)


def test_an_unknown_family_at_the_hub_is_refused_by_its_index_alone(tmp_path, monkeypatch):
    """As the cache would have it, had the index alone been fetched."""
    home = tmp_path / "models--them--video"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text("0" * 40)
    (home / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (home / "snapshots" / ("0" * 40) / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="WanPipeline is no family"):
        tune("them/video", PROMPTS, reward=brightness, output=tmp_path / "out", **settings())


@pytest.mark.parametrize("full_at", ["weights/learned.safetensors", "optimizer.pt"])
def test_a_full_disk_leaves_the_checkpoint_before(full_at, tmp_path):
    """No file may grow beyond that one's size in the second checkpoint, as if the disk were full there."""
    output, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(*_):
        if (output / "checkpoint-1").is_dir():
            size = (output / "checkpoint-1" / full_at).stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))

    hook = register_optimizer_step_post_hook(fill)
    try:
        with pytest.raises(CheckpointError, match=r"checkpoint-2 could not be written: .*checkpoint-1"):
            run(output, updates=3, save_every=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        hook.remove()
    assert [path.name for path in output.glob("*checkpoint*")] == ["checkpoint-1"]
    run(output, updates=3, save_every=1, resume=True)
    assert (output / "model_index.json").is_file()


def test_a_full_disk_leaves_what_a_run_is_known_by(tmp_path):
    create_run_directory(tmp_path, {"steps": 6})
    before = (tmp_path / "run.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            create_run_directory(tmp_path, {"steps": 7})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert (tmp_path / "run.json").read_bytes() == before


@pytest.mark.parametrize("name", ["weights/learned.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("left", [0, 100])
def test_a_damaged_checkpoint_is_named(name, left, tmp_path):
    run(tmp_path / "out", updates=1)
    damaged = tmp_path / "out/checkpoint-1" / name
    damaged.write_bytes(damaged.read_bytes()[:left])
    with pytest.raises(CheckpointError, match="checkpoint-1 cannot be read as a checkpoint"):
        run(tmp_path / "out", updates=1, resume=True)


@pytest.mark.parametrize("state", [[1], {"update": 1, "history": []}])
def test_a_checkpoint_of_another_version_is_named(state, tmp_path):
    run(tmp_path / "out", updates=1)
    (tmp_path / "out/checkpoint-1/state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="checkpoint-1 was not written by this version"):
        run(tmp_path / "out", updates=1, resume=True)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_damaged_run_is_named(text, tmp_path):
    run(tmp_path / "out", updates=1)
    (tmp_path / "out/run.json").write_text(text)
    with pytest.raises(InputError, match=r"run.json cannot be read as the config of a run"):
        run(tmp_path / "out", updates=1, resume=True)


def test_an_old_checkpoint_that_cannot_be_removed_ends_no_training(tmp_path, monkeypatch, caplog):
    remove = shutil.rmtree

    def stuck(path, **options):
        if Path(path) == tmp_path / "out/checkpoint-1" and Path(path).is_dir():
            raise OSError(39, "Directory not empty")
        remove(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr("imagereward.tuning.trainer.checkpoint_writer.shutil.rmtree", stuck)
        run(tmp_path / "out", updates=3, save_every=1, keep_checkpoints=1)
    assert "checkpoint-1, an old checkpoint, could not be removed" in caplog.text
    assert latest_state(tmp_path / "out").name == "checkpoint-3"


def test_a_checkpoint_before_the_first_step_changes_no_training(tmp_path):
    """The optimizer's own state is empty before its first step, and stays so."""
    policy = policy_of()
    network = policy.denoiser.network
    optimizer = torch.optim.AdamW(trainable_parameters(network).values(), lr=1e-3)
    contents = CheckpointContents(TrainingState(1, 3, "", [], None, 0), {}, {})
    path = CheckpointWriter(tmp_path, 1, 0, 1).save(1, network, optimizer, contents, False)
    assert not optimizer.state
    load_checkpoint(path, network, optimizer, {}, lambda: Snapshot(network))
    assert not optimizer.state


def test_a_checkpoint_of_somebody_elses_name_is_left_alone(tmp_path):
    options = {"save_every": 1, "keep_checkpoints": 1}
    run(tmp_path / "out", updates=1, **options)
    kept = (tmp_path / "out/checkpoint-1").rename(tmp_path / "out/checkpoint-best")
    run(tmp_path / "out", updates=3, **options, resume=True)
    assert sorted(path.name for path in tmp_path.glob("out/checkpoint-*")) == ["checkpoint-3", kept.name]


def test_a_run_that_was_stopped_early_stays_so_until_it_is_given_more_updates(tmp_path):
    watch = {"held_out": "test_refl:darkness", "patience": 1, "count": 2, "seeds": 1, "batch_size": 2}
    common = {"evaluation": watch, "evaluate_every": 1, "save_every": 1, "learning_rate": 1e-2}
    output = tmp_path / "out"
    run(output, updates=4, **common)
    stopped = (output / "history.json").read_text()
    assert latest_state(output).name == "checkpoint-1"
    run(output, updates=4, **common, resume=True)
    assert (output / "history.json").read_text() == stopped
    assert latest_state(output).name == "checkpoint-1"
    run(output, updates=5, **common, resume=True)
    assert latest_state(output).name == "checkpoint-2"


def test_averages_are_those_of_diffusers(tmp_path):
    """Its EMAModel, which grows its decay in the same way, beside ours at every second update."""
    updates, models = [], []

    def average(optimizer, *_):
        updates.append(1)
        values = [value for group in optimizer.param_groups for value in group["params"]]
        if len(updates) % 2 == 0:
            models.append(models[-1] if models else EMAModel(values, decay=0.3))
            models[-1].step(values)

    hook = register_optimizer_step_post_hook(average)
    try:
        run(tmp_path / "out", updates=11, ema=0.3, ema_every=2, learning_rate=1e-3)
    finally:
        hook.remove()
    assert len(updates) == 11
    names = [name for name, _ in pipelines.sd().unet.named_parameters()]
    expected = dict(zip(names, models[-1].shadow_params, strict=True))
    averaged = load_file(tmp_path / "out/checkpoint-11/weights/ema.safetensors")
    bare = load_file(tmp_path / "out/checkpoint-11/weights/learned.safetensors")
    torch.testing.assert_close(averaged, expected)
    assert any(not torch.equal(value, bare[name]) for name, value in averaged.items())


def test_an_average_that_never_moved_is_what_was_learned(tmp_path):
    plain, averaged = (run(tmp_path / str(ema), ema=ema, ema_every=8).unet.state_dict() for ema in (0.0, 0.9))
    torch.testing.assert_close(averaged, plain, rtol=0, atol=0)


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.is_wandb_available", lambda: False)
    with pytest.raises(InputError, match=r"trackers=\['tensorboard', 'wandb'\]: wandb not installed"):
        run(tmp_path / "out", trackers=["tensorboard", "wandb"])
    assert not (tmp_path / "out").exists()


def test_more_processes_than_chunks_are_refused():
    objective = refl_of(batch_size=2, micro_batch=2)
    assert next(objective.minibatches(None, plan_of(objective, rank=1, ranks=2))) == []


def test_a_pipeline_of_another_class_in_python_is_named():
    with pytest.raises(InputError, match="int is no family"):
        open_denoiser(3)
