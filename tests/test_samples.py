"""Objectives on clean samples: formulas by hand, training times, batches of items, runs, bad input."""

import itertools
import json
import math
from types import SimpleNamespace

import pipelines
import pytest
import torch
from test_refl import PROMPTS, brightness, policy_of

from imagereward.errors import DistilledModelWarning, InputError
from imagereward.tuning import tune
from imagereward.tuning.config import build
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.objectives import config_class
from imagereward.tuning.objectives.awm import AWM, matching_logp
from imagereward.tuning.objectives.config import ObjectiveContext
from imagereward.tuning.objectives.dpo import dpo_loss
from imagereward.tuning.objectives.nft import OldPolicy, implicit_policies, nft_loss, optimality_of
from imagereward.tuning.objectives.sft_online import softmax_weights
from imagereward.tuning.policy.distilled import distilled_because
from imagereward.tuning.policy.snapshots import Snapshot
from imagereward.tuning.policy.trainable import trainable_parameters
from imagereward.tuning.recipe import read_recipe
from imagereward.tuning.rewards.weighted import Rewards, open_rewards
from imagereward.tuning.rollouts.advantages import group_advantages
from imagereward.tuning.rollouts.clean import add_noise, clean_batches, mean_square
from imagereward.tuning.rollouts.collect import Rollout, RolloutChunk
from imagereward.tuning.rollouts.minibatches import Unit, share_out
from imagereward.tuning.rollouts.sample_source import SampleSource
from imagereward.tuning.rollouts.times import Times

OBJECTIVES = ("dpo_online", "sft_online", "nft", "awm")
STEPS = 6


def doubles(*shape, seed=0, gradient=False):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.requires_grad_(gradient)


# DPO.


def test_at_the_reference_dpos_loss_is_log_2_and_its_gradient_is_a_quarter_of_beta():
    chosen, rejected = (torch.zeros(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = dpo_loss(chosen, rejected, 5000.0)
    loss.sum().backward()
    assert loss.tolist() == [math.log(2)] * 3
    assert chosen.grad.tolist() == [1250.0] * 3  # beta / 2 * sigmoid(0)
    assert rejected.grad.tolist() == [-1250.0] * 3


def test_dpos_loss_is_minus_log_sigmoid_and_its_gradient_that_of_differences():
    chosen, rejected = doubles(5, seed=1, gradient=True), doubles(5, seed=2, gradient=True)
    expected = -torch.log(torch.sigmoid(-3.0 / 2 * (chosen - rejected)))
    torch.testing.assert_close(dpo_loss(chosen, rejected, 3.0), expected, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda a, b: dpo_loss(a, b, 3.0), (chosen, rejected))


def test_a_dpo_pair_far_on_the_wrong_side_stays_finite():
    assert dpo_loss(torch.tensor([10.0]), torch.tensor([0.0]), 5000.0).tolist() == [25000.0]


# DiffusionNFT.


def test_optimality_of_each_choice_by_hand():
    advantages = torch.tensor([-7.0, -2.5, 0.0, 1.0, 5.0])
    expected = {
        "all": [0, 0.25, 0.5, 0.6, 1],
        "positive": [0.5, 0.5, 0.5, 0.6, 1],
        "negative": [0, 0.25, 0.5, 0.5, 0.5],
        "one": [0.5, 0.5, 0.5, 0.6, 0.6],
        "binary": [0.4, 0.4, 0.5, 0.6, 0.6],
    }
    for choice, values in expected.items():
        assert optimality_of(advantages, choice, 5.0).tolist() == pytest.approx(values)


def plain_nft(prediction, old, x, clean, sigma, optimality, beta, bound):
    """The published loss for velocities, written element by element over the batch."""
    losses = []
    for b in range(len(clean)):
        total = 0.0
        for mixed, weight in (
            (beta * prediction[b] + (1 - beta) * old[b], optimality[b]),
            ((1 + beta) * old[b] - beta * prediction[b], 1 - optimality[b]),
        ):
            away = x[b] - sigma[b] * mixed - clean[b]
            scale = max(float(away.detach().abs().mean()), 1e-5)
            total = total + weight * (away**2 / scale).mean() / beta
        losses.append(total * bound)
    return torch.stack(losses)


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_nfts_loss_is_that_of_plain_loops_and_its_gradient_too(beta):
    prediction, old, clean = (
        doubles(3, 2, 4, seed=1, gradient=True),
        doubles(3, 2, 4, seed=2),
        doubles(3, 2, 4),
    )
    sigma, optimality = torch.tensor([0.2, 0.5, 0.9]).double(), torch.tensor([0.0, 0.3, 1.0]).double()
    s = sigma.reshape(3, 1, 1)
    x = (1 - s) * clean + s * doubles(3, 2, 4, seed=3)
    better, worse = implicit_policies(prediction, old, beta)
    loss = nft_loss(x - s * better, x - s * worse, clean, optimality, beta, 5.0)
    expected = plain_nft(prediction, old, x, clean, sigma, optimality, beta, 5.0)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = [
        torch.autograd.grad(each.sum(), prediction, retain_graph=True)[0] for each in (loss, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_at_the_old_policy_nfts_gradient_changes_its_sign_at_an_optimality_of_one_half():
    """At p = p_old, dL/dp = bound (1 - 2 r) 2 sigma (x0_old - x0) / (elements * scale): by hand."""
    old, clean = doubles(5, 3, seed=1), doubles(5, 3, seed=2)
    x, sigma, optimality = doubles(5, 3, seed=3), 0.7, torch.tensor([0, 0.25, 0.5, 0.75, 1]).double()
    prediction = old.clone().requires_grad_()
    better, worse = implicit_policies(prediction, old, 1.0)
    nft_loss(x - sigma * better, x - sigma * worse, clean, optimality, 1.0, 5.0).sum().backward()
    away = x - sigma * old - clean
    scale = away.abs().mean(1, keepdim=True)
    expected = 5.0 * (1 - 2 * optimality)[:, None] * 2 * sigma * away / (3 * scale)
    torch.testing.assert_close(prediction.grad, expected, rtol=1e-12, atol=1e-14)


def test_nfts_scale_is_no_path_of_the_gradient_and_is_at_least_1e_5():
    clean = torch.zeros(1, 4, dtype=torch.float64)
    better = torch.full((1, 4), 1e-9, dtype=torch.float64, requires_grad=True)
    loss = nft_loss(better, clean, clean, torch.ones(1).double(), 1.0, 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(1e-18 / 1e-5)
    assert better.grad[0, 0].item() == pytest.approx(2 * 1e-9 / 4 / 1e-5)


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        (OldPolicy(), {1: 0.001, 100: 0.1, 499: 0.499, 900: 0.5}),
        (OldPolicy(start=75, rate=0.0075, highest=0.999), {1: 0, 75: 0, 95: 0.15, 400: 0.999}),
        (OldPolicy(rate=0.0), {1: 0, 1000: 0}),
    ],
)
def test_the_old_policys_decay_follows_the_published_schedules(old, expected):
    assert {step: old.decay(step) for step in expected} == pytest.approx(expected)


# AWM.


def test_the_quick_average_of_awm_follows_more_slowly_with_time_if_asked():
    """As published: its decay is min(0.3, 0.001 n) after n steps; by default 0.3 from the first update."""
    values = {"model": "m", "output": "o", "prompts": "p", "group": 2, "batch_size": 4}
    plain = config_class("awm")(**values)
    assert [plain.decay_after(steps) for steps in (1, 500)] == [0.3, 0.3]
    published = build(config_class("awm"), {**read_recipe("sd3/awm"), "output": "o"}, "sd3/awm")
    found = [published.decay_after(steps) for steps in (1, 200, 300, 500)]
    assert found == pytest.approx([0.001, 0.2, 0.3, 0.3])
    policy = policy_of("sd3")
    objective = AWM(
        plain.model_copy(update={"average_rate": 0.1, "average_weight": 1.0}),
        SimpleNamespace(rows=PROMPTS, metrics={}),
    )
    weight = next(iter(trainable_parameters(policy.denoiser.network).values()))
    policy.snapshots["average"] = Snapshot(policy.denoiser.network)
    before = weight.detach().clone()
    weight.data += 1
    objective.end_update(policy, 0)
    moved = next(iter(policy.snapshots["average"].weights.values()))
    torch.testing.assert_close(moved, before + 0.9)  # 0.1 of the old, 0.9 of the new


def test_the_log_probabilities_of_awm_by_hand():
    error, noise = torch.tensor([[0.16, 1.0], [0.5, 0.25]], dtype=torch.float64)
    assert matching_logp(error, noise, "uniform").tolist() == pytest.approx([-0.16, -1.0])
    assert matching_logp(error, noise, "time").tolist() == pytest.approx([-0.08, -0.25])
    assert matching_logp(error, noise, "time_squared").tolist() == pytest.approx([-0.04, -0.0625])
    root = 1e-10**0.5
    assert matching_logp(error, noise, "ghuber", 0.5).tolist() == pytest.approx(
        [-0.5 / 0.5 * ((0.16 + 1e-10) ** 0.5 - root), -0.25 / 0.5 * ((1 + 1e-10) ** 0.5 - root)], rel=1e-12
    )


@pytest.mark.parametrize("weighting", ["uniform", "time", "time_squared", "ghuber"])
def test_gradients_of_awms_log_probabilities_are_those_of_differences(weighting):
    prediction, target = doubles(3, 4, gradient=True), doubles(3, 4, seed=1)
    noise = torch.tensor([0.1, 0.5, 1.0]).double()
    assert torch.autograd.gradcheck(
        lambda p: matching_logp(mean_square(p - target), noise, weighting), (prediction,)
    )


# SFT on drawn samples.


def test_weights_of_a_group_are_a_softmax_that_averages_to_one():
    rewards, groups = torch.tensor([0.0, 1, 2, 3, 5, 5, math.nan, 1]), torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    advantages = group_advantages(rewards, groups, "group")
    weights = softmax_weights(advantages, groups, 0.5)
    expected = (advantages.advantages[:4] / 0.5).exp()
    torch.testing.assert_close(weights[:4], 4 * expected / expected.sum())
    assert weights[4:].tolist() == [0, 0, 0, 0]  # equal rewards, and a group of one reward


# Training times.


def of_samples(times, family="sd3", samples=range(40), place=0, seed=0):
    return times.of_samples(policy_of(family, steps=STEPS).dynamics, samples, seed, place)


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_all_times_of_the_grid_are_taken_once_by_every_sample_in_its_own_order(family):
    dynamics, times = policy_of(family, steps=STEPS).dynamics, Times(draw="grid", count=0)
    assert times.passes(STEPS) == 5
    each = torch.stack([of_samples(times, family, place=place) for place in range(5)])
    grid = dynamics.model_time(torch.arange(5))
    assert torch.equal(each.sort(0, descending=True).values, grid[:, None].expand(5, 40))
    assert len({tuple(column) for column in each.T.tolist()}) > 20


def test_fewer_times_than_the_grid_has_are_one_from_each_part():
    dynamics = policy_of("sd3", steps=STEPS).dynamics
    times = Times(draw="grid", count=2, first=1, last=4)
    drawn = (
        torch.stack([of_samples(times, place=place) for place in range(2)]).sort(0, descending=True).values
    )
    early, late = (set(row.tolist()) for row in drawn)
    grid = dynamics.model_time(torch.arange(STEPS)).tolist()
    assert early == set(grid[1:3])
    assert late == set(grid[3:5])


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_uniform_times_keep_their_range_and_are_one_from_each_part(family):
    dynamics = policy_of(family, steps=STEPS).dynamics
    times = Times(draw="uniform", count=4, lowest=0.2, highest=0.6)
    shares = (
        torch.stack([dynamics.share_of(of_samples(times, family, place=k)) for k in range(4)]).sort(0).values
    )
    for part, row in enumerate(shares):
        assert row.min() >= 0.2 + 0.1 * part - 1e-3
        assert row.max() <= 0.3 + 0.1 * part + 1e-3


def test_the_familys_times_are_drawn_again_until_they_are_in_range_and_depend_on_nothing_else():
    times = Times(lowest=0.5, highest=0.9)
    drawn = of_samples(times)
    assert ((drawn >= 500) & (drawn <= 900)).all()
    assert len(set(drawn.tolist())) == 40
    assert torch.equal(drawn[7:9], of_samples(times, samples=[7, 8]))
    assert not torch.equal(drawn, of_samples(times, seed=1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lowest": 0.5, "highest": 0.5}, r"lowest=0\.5 is not below highest=0\.5"),
        ({"lowest": -0.1}, "lowest.*greater than or equal to 0"),
        ({"highest": 1.1}, "highest.*less than or equal to 1"),
        ({"count": 0}, "count=0 is for draw='grid'"),
        ({"first": 2}, "first and last are for draw='grid'"),
        ({"draw": "grid", "highest": 0.9}, "lowest and highest are for draw='family' and 'uniform'"),
        ({"draw": "grid", "first": 3, "last": 2}, "first=3 is after last=2"),
        ({"draw": "grid", "last": 6}, r"times: 0\.\.6 of 4 sampling steps, 0\.\.3"),
        ({"draw": "grid", "count": 4}, r"times\.count=4: from 0 to 2 are 3 steps"),
    ],
)
def test_times_that_make_no_sense_are_refused(values, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run("dpo_online", tmp_path / "out", times=values)
    assert not (tmp_path / "out").exists()


def test_a_range_without_any_training_time_is_refused():
    with pytest.raises(InputError, match="the family draws hardly any time between"):
        of_samples(Times(lowest=0.0, highest=1e-9), samples=[0])


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_clean_latents_come_back_from_the_right_prediction_at_any_training_time(family):
    dynamics = policy_of(family, steps=STEPS).dynamics
    clean, noise = torch.randn(2, 3, 4, 8, 8)
    time = dynamics.times_at(torch.tensor([0.1, 0.5, 0.95]))
    x = dynamics.add_noise(clean, noise, time)
    found = dynamics.x0_at(x, dynamics.target(clean, noise, time), time)
    torch.testing.assert_close(found, clean, atol=1e-4, rtol=1e-4)
    assert dynamics.share_of(time).tolist() == pytest.approx([0.1, 0.5, 0.95], abs=1e-3)


# Sharing out.


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_process_has_as_many_passes_and_shares_add_up_over_all(ranks):
    units = [Unit(index % ranks if index < 5 else 0, index % 3, index // 4) for index in range(8)]
    by_rank = [share_out(units, rank=rank, ranks=ranks, passes=3) for rank in range(ranks)]
    assert len({len(steps) for steps in by_rank}) == 1
    for part, turns in enumerate(zip(*by_rank, strict=True)):
        assert len({len(each) for each in turns}) == 1
        flat = list(itertools.chain(*turns))
        assert sum(turn.share for turn in flat) == pytest.approx(1)
        weights = {index: each.weight for index, each in enumerate(units) if each.part == part}
        found = {}
        for turn in flat:
            if turn.unit is not None:
                found[turn.unit] = found.get(turn.unit, 0) + turn.share
        expected = {index: weight / sum(weights.values()) for index, weight in weights.items() if weight}
        assert found == pytest.approx(expected)


def rollout_of(policy, plan):
    """A rollout whose latents hold their sample's index in the update."""
    chunks = []
    for chunk in plan.mine:
        indices = torch.tensor([number - plan.first for number in chunk.samples]).float()
        rows = [f"prompt {int(index) // plan.group}" for index in indices]
        latents = indices.reshape(-1, 1, 1, 1).expand(-1, 4, 8, 8)
        chunks.append(RolloutChunk(chunk, rows, policy.denoiser.encode(rows), latents, None))
    return Rollout(chunks, {}, torch.arange(plan.batch_size) // plan.group, {})


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("parts", [1, 2])
def test_pairs_are_batched_with_their_own_prompts_and_no_pair_is_lost(ranks, parts):
    policy = policy_of("sd3", steps=STEPS)
    pairs = torch.tensor([[1, 0], [4, 6], [9, 8], [15, 12]])  # the groups of four 0, 1, 2 and 3
    seen = []
    for rank in range(ranks):
        plan = UpdatePlan(3, 16, 4, rank, ranks, group=4, whole_groups=True)
        steps = clean_batches(rollout_of(policy, plan), plan, pairs, torch.arange(4), passes=2, parts=parts)
        assert len(steps) == parts
        for batch in itertools.chain(*steps):
            if batch.share:
                indices = batch.latents[:, :, 0, 0, 0].T.int().tolist()
                seen += [(tuple(pair), batch.pass_index) for pair in indices]
                assert [first - plan.first for first in batch.samples] == [pair[0] for pair in indices]
                assert batch.prompts == [f"prompt {pair[0] // 4}" for pair in indices]
                assert len(indices) <= 2
    assert sorted(seen) == sorted((tuple(pair), place) for pair in pairs.tolist() for place in range(2))


def test_a_pair_has_one_time_and_one_noise():
    policy, plan = policy_of("sd3", steps=STEPS), UpdatePlan(0, 4, 4, group=2, whole_groups=True)
    pairs = torch.tensor([[0, 1], [3, 2]])
    ((batch,),) = clean_batches(rollout_of(policy, plan), plan, pairs, torch.ones(2), passes=1)
    noised = add_noise(policy, batch, Times(), seed=5)
    assert torch.equal(noised.noise[:2], noised.noise[2:])
    assert torch.equal(noised.time[:2], noised.time[2:])
    assert not torch.equal(noised.noise[0], noised.noise[1])
    assert noised.clean[:, 0, 0, 0].tolist() == [0, 3, 1, 2]
    torch.testing.assert_close(noised.x, policy.dynamics.add_noise(noised.clean, noised.noise, noised.time))
    hidden = noised.condition.tensors["encoder_hidden_states"]
    assert torch.equal(hidden[:2], hidden[2:])


# Which samples of a group are the best.

FIXED = {"large": [300.0, 100.0, 0.0, 200.0], "small": [0.0, 0.03, 0.02, 0.01], "other": [0.0, 3.0, 2.0, 1.0]}


def first_batch(objective, **changes):
    """(the first batch of the objective's first update, its policy), for rewards that are FIXED."""
    values = {"model": "none", "output": "none", "prompts": "none", "group": 4, "batch_size": 4}
    config = config_class(objective)(**values, micro_batch=4, steps=STEPS, **changes)
    policy = policy_of("sd3", steps=STEPS)
    rewards = Rewards({name: (1.0, lambda *_, v=value: torch.tensor(v)) for name, value in FIXED.items()})
    made = config.make(ObjectiveContext(policy.denoiser, rewards, PROMPTS, None))
    return next(iter(made.minibatches(policy, UpdatePlan(0, 4, 4))))[0]


@pytest.mark.parametrize(
    ("how", "best", "worst"),
    [({}, 0, 2), ({"advantages_of": "each", "advantage_std": "group"}, 1, 0)],
    ids=["sum", "each"],
)
def test_the_best_of_several_rewards_is_of_their_sum_or_of_their_standardised_sum(how, best, worst):
    """Standardised in the group, large = (1.3, -0.4, -1.3, 0.4) and twice (-1.3, 1.3, 0.4, -0.4)."""
    alone = first_batch("sft_online", **how)
    assert alone.samples == [best]
    chosen, rejected = first_batch("dpo_online", beta=1.0, **how).latents[:, 0]
    assert torch.equal(chosen, alone.latents[0, 0])
    every = first_batch("sft_online", samples="top", top=3, **how)
    assert sorted(every.samples) == [number for number in range(4) if number != worst]
    assert not any(torch.equal(rejected, each) for each in every.latents[0])


# Runs.


def run(objective, output, family="sd3", reward=brightness, **changes):
    values = {
        "recipe": f"tiny/{objective}",
        **{"resolution": 16, "steps": 4, "updates": 2, "batch_size": 4, "micro_batch": 2, "group": 2},
        **{"save_every": 1, "evaluate_every": 2, "weight_decay": 0.0, "learning_rate": 1e-3},
        "scoring": {"wait": 0.0},
        "evaluation": {"count": 1, "seeds": 1, "steps": 2, "batch_size": 2},
    }
    return tune(
        pipelines.FAMILIES[family](),
        pipelines.rows(family),
        reward=reward,
        output=output,
        **(values | changes),
    )


CALLS_LEFT = [0]


def interruptible(pixels, prompts):
    """Brightness; a call that brings CALLS_LEFT from 1 to 0 stops the training instead."""
    CALLS_LEFT[0] -= 1
    if CALLS_LEFT[0] == 0:
        raise KeyboardInterrupt
    return brightness(pixels, prompts)


def history_of(output):
    return [entry for entry in json.loads((output / "history.json").read_text()) if "loss" in entry]


def test_dpo_begins_at_log_2_and_awm_with_a_ratio_of_one(tmp_path):
    run("dpo_online", tmp_path / "dpo")
    first, second = history_of(tmp_path / "dpo")
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert (first["accuracy"], first["counted"]) == (0.5, 1.0)
    assert second["loss"] != first["loss"]
    run("awm", tmp_path / "awm", optimizer_steps=2, updates=1, learning_rate=1e-2)
    (update,) = history_of(tmp_path / "awm")
    assert update["ratio"] != 1.0  # the second step of the optimizer is off the rollout's policy
    run("awm", tmp_path / "alone")
    assert [entry["ratio"] for entry in history_of(tmp_path / "alone")] == [1.0, 1.0]


def test_nft_begins_at_the_old_policy_which_then_follows_by_its_decay(tmp_path):
    run("nft", tmp_path / "out", reference_weight=0.1, old={"start": 1, "rate": 0.25, "highest": 0.5})
    first, second = history_of(tmp_path / "out")
    assert (first["old_distance"], first["reference_distance"]) == (0, 0)
    assert (first["old_decay"], second["old_decay"]) == (0, 0.25)
    assert second["old_distance"] == 0  # a decay of 0 was a copy
    assert second["reference_distance"] > 0


def test_the_reference_of_dpo_is_replaced_every_so_many_updates_also_after_resuming(tmp_path):
    options = {"updates": 3, "refresh": {"every": 2}, "reward": interruptible}
    run("dpo_online", tmp_path / "whole", **options)
    whole = history_of(tmp_path / "whole")
    assert [entry["refreshed"] for entry in whole] == [0, 1, 0]
    assert whole[1]["loss"] != pytest.approx(math.log(2), rel=1e-6)
    assert whole[2]["loss"] == pytest.approx(math.log(2), rel=1e-6)  # at the new reference
    CALLS_LEFT[0] = 7
    with pytest.raises(KeyboardInterrupt):
        run("dpo_online", tmp_path / "broken", **options)
    run("dpo_online", tmp_path / "broken", **options, resume=True)
    assert history_of(tmp_path / "broken") == whole


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(objective, tmp_path):
    options = {"updates": 3, "lora": {"rank": 2}}
    if objective == "awm":
        options |= {"average_weight": 1.0, "reference_weight": 0.1, "optimizer_steps": 2}
    if objective == "nft":
        options |= {"old": {"rate": 0.3}, "reference_weight": 0.1}
    options["reward"] = interruptible
    run(objective, tmp_path / "whole", **options)
    CALLS_LEFT[0] = 7  # in the third update: two evaluations have a call each, and an update two
    with pytest.raises(KeyboardInterrupt):
        run(objective, tmp_path / "broken", **options)
    assert (tmp_path / "broken/checkpoint-2").is_dir()
    assert not (tmp_path / "broken/checkpoint-3").exists()
    run(objective, tmp_path / "broken", **options, resume=True)
    kept = sorted(path.name for path in (tmp_path / "whole/checkpoint-3/weights").iterdir())
    assert "learned.safetensors" in kept
    for name in kept:
        a, b = (
            (tmp_path / each / "checkpoint-3/weights" / name).read_bytes() for each in ("whole", "broken")
        )
        assert a == b, name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equal_rewards_teach_nothing_and_are_no_error(objective, tmp_path, caplog):
    run(objective, tmp_path / "out", reward=lambda pixels, prompts: torch.zeros(len(prompts)), updates=1)
    assert "no group has two different rewards; nothing is learned" in caplog.text


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        ("nft", {"group": 1}, "group.*greater than or equal to 2"),
        ("dpo_online", {"group": 3}, "group=3 does not divide batch_size=4"),
        ("dpo_online", {"beta": 0.0}, "beta.*greater than 0"),
        ("dpo_online", {"shared_initial_noise": True}, "DPO on drawn images draws without noise"),
        ("dpo_online", {"refresh": {"kl_above": 1.0}}, "DPO measures no KL"),
        ("dpo_online", {"reward": ""}, 'reward="": DPO on drawn images needs one'),
        ("sft_online", {"samples": "top", "top": 2}, "top=2 of group=2: expected fewer"),
        ("sft_online", {"temperature": 0.0}, "temperature.*greater than 0"),
        ("awm", {"power": 1.5}, "power.*less than or equal to 1"),
        ("awm", {"lora": {"rank": 2, "dropout": 0.1}}, r"lora\.dropout: images are drawn without it"),
        ("nft", {"old": {"highest": 1.0}}, r"old\.highest.*less than 1"),
        ("nft", {"beta": -1.0}, "beta.*greater than 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(objective, changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(objective, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("whole", [False, True])
def test_more_processes_than_draw_are_refused_by_all_of_them(whole):
    source = SampleSource(PROMPTS, open_rewards(brightness), group=2)
    for rank in range(3):
        with pytest.raises(InputError, match=r"group=2.*: only 2 of 3 processes would draw samples"):
            source.plan(UpdatePlan(0, 4, 2, rank, 3), whole)
        assert source.plan(UpdatePlan(0, 6, 2, rank, 3), whole).ranks == 3


def test_fill_without_a_mask_is_refused_naming_the_row(tmp_path):
    rows = [pipelines.rows("flux_fill")[0].prompt]
    with pytest.raises(InputError, match="has no image: expected prompt, image, mask"):
        tune(
            pipelines.FAMILIES["flux_fill"](),
            rows,
            reward=brightness,
            output=tmp_path / "out",
            recipe="tiny/nft",
            resolution=16,
        )


def test_a_distilled_model_is_warned_of_by_the_sign_it_shows(tmp_path):
    from diffusers import EulerDiscreteScheduler, LCMScheduler

    pipeline = pipelines.sd()
    assert distilled_because(open_denoiser(pipeline)) is None
    config = pipeline.scheduler.config
    pipeline.scheduler = EulerDiscreteScheduler.from_config(config, timestep_spacing="trailing")
    assert "timestep_spacing='trailing'" in distilled_because(open_denoiser(pipeline))
    pipeline.scheduler = LCMScheduler.from_config(config)
    with pytest.warns(DistilledModelWarning, match=r"nft: .*its scheduler is a LCMScheduler"):
        tune(
            pipeline,
            pipelines.PROMPTS,
            reward=brightness,
            output=tmp_path / "out",
            recipe="tiny/nft",
            resolution=16,
            steps=4,
            updates=1,
            batch_size=4,
            group=2,
            evaluation={"count": 1, "seeds": 1, "steps": 2, "batch_size": 2},
        )
