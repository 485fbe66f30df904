"""Against reward hacking: disputed samples, the reference's replacement and Flow-DPPO's mask, by hand."""

import json
import math

import pytest
import torch
from test_grpo import first_step, grpo_of, moved, run, small
from test_processes import check_equal, launched
from test_refl import brightness, plan_of, redness

from imagereward.errors import InputError
from imagereward.tuning.objectives.clipping import clipped_loss, masked_loss
from imagereward.tuning.objectives.grpo import KL, GRPOConfig
from imagereward.tuning.objectives.penalty import Penalty
from imagereward.tuning.objectives.weighted import Weighted
from imagereward.tuning.policy.refresh import Refresher, RefreshRule
from imagereward.tuning.policy.trainable import LoRA
from imagereward.tuning.rewards.weighted import Rewards, open_rewards
from imagereward.tuning.rollouts.advantages import disputed
from imagereward.tuning.rollouts.collect import collect
from imagereward.tuning.rollouts.window import Window
from imagereward.tuning.sampling.base import kl_divergence

NAN = float("nan")
BOTH = {"test_refl:brightness": 1.0, "test_refl:redness": 0.0}
LORA = LoRA(rank=2, init="default")


# Flow-DPPO's mask.


def test_the_masked_loss_by_hand():
    ratio = torch.tensor([1.2, 0.8, 1.2, 0.8, 1.2, 1.0], requires_grad=True)
    worth = torch.tensor([2.0, 2, -1, -1, 2, 2])
    kl = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.4, 0.5])
    loss, dropped = masked_loss(ratio, worth, kl, 0.5)
    # The first and the fourth moved as they should, and are far enough; the fifth is not.
    assert dropped.tolist() == [True, False, False, True, False, False]
    assert loss.tolist() == pytest.approx([0, -1.6, 1.2, 0, -2.4, -2])
    loss.sum().backward()
    assert ratio.grad.tolist() == [0, -2, 1, 0, -2, -2]


def test_before_anything_is_learned_the_masked_loss_is_the_clipped_one():
    batch_of = {}
    for name, options in {"clip": {}, "mask": {"divergence_bound": 1e-5}}.items():
        objective, policy = grpo_of(**options), small()
        batch = first_step(objective, policy)[0]
        loss, metrics = objective.loss(policy, batch)
        loss.backward()
        batch_of[name] = loss, policy.denoiser.network.proj_out.weight.grad
        assert metrics["clipped"] == 0
    torch.testing.assert_close(batch_of["clip"], batch_of["mask"])


def test_a_mask_drops_by_the_distance_of_the_means_from_the_rollouts():
    objective, policy = grpo_of(divergence_bound=1e-30, window=Window(first=1)), small()
    batch = first_step(objective, policy)[0]
    moved(policy)
    noisy, x, at, kept = objective.noisy(policy), batch.before, batch.step_index, batch.trajectories
    step = noisy.step(x, policy.predict(x, at, kept.condition), at, next=batch.after)
    ratio = (step.logp - kept.logps[:, batch.window_step]).exp()
    kl = ((step.mean - kept.means[:, batch.window_step]) ** 2 / (2 * step.std**2)).mean((1, 2, 3))
    between = float(kl.detach().mean())
    assert kl.min() < between < kl.max()
    for bound in (1e-30, between, 1.0):
        objective.config = objective.config.model_copy(update={"divergence_bound": bound})
        loss, metrics = objective.loss(policy, batch)
        away = torch.tensor(
            [
                bool(far >= bound and (r - 1) * worth > 0)
                for far, r, worth in zip(kl, ratio, batch.advantages, strict=True)
            ]
        )
        assert metrics["clipped"] == away.float().mean()
        torch.testing.assert_close(loss, torch.where(away, 0.0, -batch.advantages * ratio).mean())
    assert not torch.equal(loss, clipped_loss(ratio, batch.advantages, 1e-4).mean())


# Disputed samples.


def test_disputed_samples_by_hand():
    # Places: trained 0, 1/3, 2/3, 1; watched 1, 2/3, 1/3, 0 and 0, 1/3, 1, 2/3: in the mean 1/2, 1/2, 2/3,
    # 1/3.
    trained, watched = (
        torch.tensor([1.0, 2, 3, 4]),
        [torch.tensor([9.0, 8, 7, 6]), torch.tensor([0.1, 0.2, 0.4, 0.3])],
    )
    assert disputed(trained, watched, 1.0).tolist() == [False, False, False, True]
    assert disputed(trained, watched, 0.01).tolist() == [False, False, False, True]
    assert disputed(trained, watched[:1], 1.0).tolist() == [False, False, True, True]
    assert disputed(trained, watched[:1], 0.5).tolist() == [False, False, False, True]
    assert not disputed(trained, [10 * trained], 1.0).any()  # scales do not matter
    assert not disputed(torch.zeros(4), [torch.zeros(4)], 1.0).any()


def test_equally_disputed_samples_are_chosen_together_and_ties_count_half():
    # Places: trained 5/6, 5/6, 1/6, 1/6; watched the other way round: U = 2/3 twice.
    trained = torch.tensor([1.0, 1, 0, 0])
    assert disputed(trained, [-trained], 0.1).tolist() == [True, True, False, False]


def test_what_has_no_reward_is_not_disputed():
    trained = torch.tensor([1.0, 2, NAN, 4])
    # Trained places are 0, 1/2, none, 1; watched 1/2, none, 1, 0 and none, none, 0, 1: means are 1/2.
    watched = [torch.tensor([5.0, NAN, 9, 1]), torch.tensor([NAN, NAN, 0, 1])]
    assert disputed(trained, watched, 1.0).tolist() == [False, False, False, True]
    assert not disputed(torch.full((3,), NAN), [torch.ones(3)], 1.0).any()
    assert not disputed(torch.arange(3.0), [torch.full((3,), NAN)], 1.0).any()


def rollout_of(objective, policy, plan):
    """The same samples once more, by themselves."""
    return collect(
        policy,
        plan.in_groups(2),
        objective.rows,
        objective.rewards,
        window=objective.config.window,
        dynamics=objective.noisy(policy),
        seed=0,
    )


def test_only_disputed_samples_have_the_penalty():
    policy = small(lora=LORA, base=True)
    rewards = open_rewards({"test_refl:brightness": 1.0, "test_refl:darkness": 0.0})
    objective = grpo_of(reward=rewards, kl=KL(form="published", beta=0.5, on="disputed", share=1.0))
    plain = grpo_of(reward=rewards)
    plan = plan_of(objective)
    batches, same = next(objective.minibatches(policy, plan)), next(plain.minibatches(policy, plan))
    light_N = rollout_of(objective, policy, plan).rewards["test_refl:brightness"]
    moved(policy, 0.1)
    # By brightness and darkness the places are opposite, so the brighter half is disputed.
    light = dict(enumerate((light_N > light_N.median()).tolist()))
    assert sum(light.values()) == 2
    for batch, other in zip(batches, same, strict=True):
        noisy, x, at = objective.noisy(policy), batch.before, batch.step_index
        step = noisy.step(x, policy.predict(x, at, batch.trajectories.condition), at, next=batch.after)
        with policy.using("reference"):
            base = noisy.step(x, policy.predict(x, at, batch.trajectories.condition), at, next=batch.after)
        away = kl_divergence(step.mean, base.mean, step.std) * step.dt.flatten()
        pays = torch.tensor([light[number] for number in batch.trajectories.chunk.samples])
        loss, metrics = objective.loss(policy, batch)
        torch.testing.assert_close(loss, plain.loss(policy, other)[0] + 0.5 * (away * pays).mean())
        torch.testing.assert_close(metrics["kl"], (away / step.dt.flatten()).mean().detach())
    assert objective.end_update(policy, 0)["penalised"] == 0.5


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0), (0.0,)])
def test_a_dispute_needs_a_trained_and_a_watched_reward(weights):
    rewards = Rewards(
        {name: (w, f) for (name, f), w in zip({"a": brightness, "b": redness}.items(), weights)}
    )
    with pytest.raises(InputError, match=r'kl\.on="disputed": \d of \d rewards have weight 0'):
        Penalty(KL(form="true", beta=1.0, on="disputed"), rewards)


# The reference.


@pytest.mark.parametrize(
    ("rule", "updates", "kl", "due"),
    [
        ({"every": 3}, 2, 9.0, False),
        ({"every": 3}, 3, None, True),
        ({"every": 3}, 4, None, True),
        ({"kl_above": 0.5}, 100, 0.5, False),
        ({"kl_above": 0.5}, 1, 0.51, True),
        ({"kl_above": 0.5}, 1, None, False),
        ({"every": 3, "kl_above": 0.5}, 1, 0.6, True),
        ({"every": 3, "kl_above": 0.5}, 3, 0.1, True),
        ({"every": 3, "kl_above": 0.5}, 2, 0.1, False),
    ],
)
def test_when_the_reference_is_due(rule, updates, kl, due):
    assert RefreshRule(**rule).due(updates, kl) == due


def test_a_refresher_copies_the_weights_and_counts_from_there():
    policy = small(lora=LORA, base=True)
    refresher = Refresher(RefreshRule(every=2, kl_above=0.5))
    moved(policy)
    reference, own = policy.snapshots["reference"], policy.denoiser.network

    def equal():
        return all(
            torch.equal(dict(own.named_parameters())[name], value)
            for name, value in reference.weights.items()
        )

    assert not refresher.after_update(policy, 0.1)
    assert not equal()
    other = Refresher(RefreshRule(every=2))
    other.load_state_dict(refresher.state_dict())
    assert refresher.after_update(policy, 0.1)
    assert equal()
    assert [refresher.after_update(policy, kl) for kl in (0.6, 0.1, None, 0.6)] == [True, False, True, True]
    assert other.after_update(policy)
    assert not other.after_update(policy)


def history_of(output):
    entries = json.loads((output / "history.json").read_text())
    return [entry for entry in entries if "refreshed" in entry]


def test_grpo_replaces_its_reference_and_its_distance_begins_again(tmp_path):
    kl = {"form": "true", "beta": 1e-6, "refresh": {"every": 2}}
    run(tmp_path / "out", updates=4, kl=kl, lora={"rank": 2, "alpha": 16}, learning_rate=0.01)
    seen = history_of(tmp_path / "out")
    assert [entry["refreshed"] for entry in seen] == [0, 1, 0, 1]
    # The first update of each reference is from weights that equal it.
    assert seen[0]["kl"] == seen[2]["kl"] == 0
    assert seen[1]["kl"] > 0
    assert seen[3]["kl"] > 0


def test_grpo_replaces_its_reference_beyond_a_kl(tmp_path):
    kl = {"form": "true", "beta": 1e-6, "refresh": {"kl_above": 1e-12}}
    run(tmp_path / "out", updates=4, kl=kl, lora={"rank": 2, "alpha": 16}, learning_rate=0.01)
    seen = history_of(tmp_path / "out")
    assert [entry["refreshed"] for entry in seen] == [float(entry["kl"] > 1e-12) for entry in seen]
    assert [entry["refreshed"] for entry in seen] == [0, 1, 0, 1]


def test_an_update_without_a_difference_has_no_kl(tmp_path):
    objective = grpo_of(
        reward=lambda pixels, prompts: torch.ones(len(pixels)),
        kl=KL(form="true", beta=1.0, refresh=RefreshRule(kl_above=1e-12)),
    )
    policy = small(base=True)
    assert list(objective.minibatches(policy, plan_of(objective))) == []
    assert objective.end_update(policy, 0)["refreshed"] == 0


def test_a_resumed_run_goes_on_with_its_reference_and_its_count(tmp_path):
    options = {
        "kl": {"form": "true", "beta": 0.1, "refresh": {"every": 2}},
        "lora": {"rank": 2},
        "save_every": 1,
    }
    run(tmp_path / "whole", updates=4, **options)
    for updates in (1, 3, 4):
        run(tmp_path / "broken", updates=updates, resume=updates > 1, **options)
    for name in ("learned", "reference"):
        a, b = (
            (tmp_path / each / f"checkpoint-4/weights/{name}.safetensors").read_bytes()
            for each in ("whole", "broken")
        )
        assert a == b
    whole, broken = (history_of(tmp_path / each) for each in ("whole", "broken"))
    assert [e["refreshed"] for e in whole] == [e["refreshed"] for e in broken] == [0, 1, 0, 1]


def test_the_count_is_kept_beside_other_objectives():
    made = [grpo_of(kl=KL(form="true", beta=1.0, refresh=RefreshRule(every=9))) for _ in range(2)]
    both = [Weighted({"grpo": (1.0, each), "other": (1.0, grpo_of())}) for each in made]
    made[0].penalty.refresher.updates = 5
    both[1].load_state_dict(both[0].state_dict())
    assert made[1].penalty.refresher.updates == 5
    assert grpo_of().state_dict() == grpo_of(kl=KL(form="true", beta=1.0)).state_dict() == {}


def test_two_processes_replace_it_together_and_dispute_the_same_samples(tmp_path):
    call = """test_grpo.run(out, reward={"test_refl:brightness": 1.0, "test_refl:redness": 0.0}, updates=3,
    batch_size=8, micro_batch=2, lora={"rank": 2, "alpha": 16}, learning_rate=0.01, max_gradient_norm=1e6,
    divergence_bound=1e-5, optimizer_steps=2,
    kl={"form": "true", "beta": 0.1, "on": "disputed", "share": 0.5, "refresh": {"kl_above": 1e-9}})"""
    one, two = launched(call, tmp_path)
    check_equal(one, two, [1])
    seen = history_of(one)
    assert [entry["refreshed"] for entry in seen] == [entry["refreshed"] for entry in history_of(two)]
    assert any(entry["refreshed"] for entry in seen)
    assert all(0 < entry["penalised"] < 1 for entry in seen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"divergence_bound": 0}, "divergence_bound.*greater than 0"),
        ({"divergence_bound": 1e-5, "guard": True}, "guard centres ratios for clipping"),
        ({"kl": {"form": "true", "beta": 1.0, "refresh": {}}}, "refresh without every and kl_above"),
        ({"kl": {"form": "true", "beta": 1.0, "refresh": {"every": 0}}}, "every.*greater than or equal to 1"),
        ({"kl": {"form": "true", "beta": 1.0, "refresh": {"kl_above": 0}}}, "kl_above.*greater than 0"),
        ({"kl": {"form": "true", "beta": 1.0, "share": 0}}, "share.*greater than 0"),
        ({"kl": {"form": "true", "beta": 1.0, "share": 1.1}}, "share.*less than or equal to 1"),
        ({"kl": {"form": "true", "beta": 1.0, "on": "some"}}, r"kl\.on"),
        ({"kl": {"form": "true", "beta": 1.0, "on": "disputed"}}, r"0 of 1 rewards have weight 0"),
        ({"advantages_of": "all"}, "advantages_of"),
        ({"normalize_rewards": True}, "normalize_rewards is no key"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_the_published_values_are_in_range():
    values = {"form": "published", "beta": 0.04, "on": "disputed", "refresh": {"every": 15, "kl_above": 3e-4}}
    assert math.isclose(KL(**values).share, 0.1)
    assert "divergence_bound" in GRPOConfig.model_fields
