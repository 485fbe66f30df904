"""Rollouts: what is kept of trajectories, how they are dealt out, who draws what."""

from collections import Counter

import pipelines
import pytest
import torch
from test_refl import PROMPTS, brightness, policy_of

from imagereward.errors import InputError, RewardError
from imagereward.tuning.data.chunks import Chunk
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.seeding import noise_for_samples
from imagereward.tuning.rewards.scoring import ScoringConfig
from imagereward.tuning.rewards.weighted import open_rewards
from imagereward.tuning.rollouts.advantages import best_and_worst, top_mask
from imagereward.tuning.rollouts.collect import collect
from imagereward.tuning.rollouts.minibatches import make_minibatches
from imagereward.tuning.rollouts.trajectories import (
    Trajectories,
    check_noise,
    group_numbers,
    rows_for_groups,
    sample_trajectories,
)
from imagereward.tuning.rollouts.window import Window
from imagereward.tuning.sampling.base import Noise

STEPS = 6
AT_ONCE = ScoringConfig(retries=0, wait=0.0)
FLOW = Noise(kind="flow_grpo", level=0.7)
CHUNK = Chunk(0, 0, (0, 1), 0.5)


def rolled(family="sd3", window=None, noise=FLOW, storage=None, chunk=CHUNK, starts=None, **options):
    policy = policy_of(family, steps=STEPS)
    steps = (window or Window()).draw(STEPS, 0, chunk.update)
    condition = policy.denoiser.encode(pipelines.rows(family, len(chunk.samples)))
    noisy = policy.dynamics.with_noise(noise, storage)
    return sample_trajectories(
        policy, noisy, condition, chunk, steps, seed=0, starts=starts or chunk.samples, **options
    )


# The window.


def test_a_window_is_somewhere_within_its_bounds_and_the_same_for_everyone():
    window = Window(size=2, first=1, last=4)
    drawn = [window.draw(STEPS, 0, update) for update in range(50)]
    assert {(steps.start, steps.stop) for steps in drawn} == {(1, 3), (2, 4), (3, 5)}
    assert drawn == [window.draw(STEPS, 0, update) for update in range(50)]


def test_without_a_size_all_steps_but_the_last_are_trained():
    assert Window().draw(STEPS, 0, 3) == range(0, 5)
    assert Window(last=5).draw(STEPS, 0, 3) == range(0, 6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"last": 6}, r"window: 0\.\.6 of 6 sampling steps, 0\.\.5"),
        ({"first": 5}, r"window: 5\.\.4 of 6 sampling steps"),
        ({"size": 6}, r"window.size=6: from 0 to 4 are 5 steps"),
        ({"size": 3, "first": 2, "last": 3}, "window.size=3: from 2 to 3 are 2 steps"),
    ],
)
def test_a_window_that_does_not_fit_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        Window(**values).bounds(STEPS)


def test_steps_without_noise_cannot_be_trained():
    dynamics = policy_of("sd3", steps=STEPS).dynamics
    with pytest.raises(InputError, match=r"window: steps \[5\] of 0\.\.5 have no noise"):
        check_noise(dynamics.with_noise(Noise(kind="cps", level=0.8)), range(STEPS))
    with pytest.raises(InputError, match=r"steps \[0, 1, 2\]"):
        check_noise(dynamics.with_noise(Noise(kind="constant", level=0)), range(3))
    check_noise(dynamics.with_noise(FLOW), range(STEPS))


# What is kept.


@pytest.mark.parametrize("storage", [None, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_only_the_window_is_kept(size, storage):
    kept, _ = rolled(window=Window(size=size), storage=storage)
    latents = 2 * 4 * 8 * 8 * (2 if storage else 4)
    assert kept.nbytes == latents * (size + 1) + 2 * size * 4
    assert kept.latents.untyped_storage().nbytes() == latents * (size + 1)
    with_means, _ = rolled(window=Window(size=size), storage=storage, keep_means=True)
    assert with_means.nbytes - kept.nbytes == 2 * 4 * 8 * 8 * 4 * size


def test_outside_of_the_window_nothing_is_random():
    # From the same start: equal where the window begins, different where it ends.
    chunk = Chunk(0, 0, (0, 1), 1.0)
    window = Window(size=1, first=3, last=3)
    policy = policy_of("sd3", steps=STEPS)
    condition = policy.denoiser.encode(pipelines.PROMPTS[:1]).repeat(2)
    noisy = policy.dynamics.with_noise(FLOW)
    steps = window.draw(STEPS, 0, 0)
    kept, clean = sample_trajectories(policy, noisy, condition, chunk, steps, seed=0, starts=[0, 0])
    torch.testing.assert_close(kept.latents[0, 0], kept.latents[1, 0])
    assert (kept.latents[0, 1] - kept.latents[1, 1]).abs().max() > 0.01
    assert (clean[0] - clean[1]).abs().max() > 0.01


def test_what_is_kept_is_frozen():
    kept, clean = rolled()
    assert not any(each.requires_grad for each in (kept.latents, kept.logps, clean))
    with pytest.raises(AttributeError):
        kept.latents = clean


def test_a_sample_is_drawn_the_same_whatever_it_is_drawn_with():
    _, together = rolled(chunk=Chunk(0, 0, (4, 5), 1.0))
    policy = policy_of("sd3", steps=STEPS)
    condition = policy.denoiser.encode(pipelines.PROMPTS[1:2])
    noisy = policy.dynamics.with_noise(FLOW)
    _, alone = sample_trajectories(
        policy, noisy, condition, Chunk(0, 9, (5,), 1.0), range(5), seed=0, starts=[5]
    )
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-5)


# Who draws what.


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_prompt_is_drawn_as_often_as_a_group_is_large_over_all_processes(ranks, seed):
    size, batch, count, epochs = 4, 24, 13, 40
    seen, before = Counter(), Counter()
    for update in range(2 * epochs):  # of 6 groups: an epoch has two, and one row is left over
        drawn = Counter()
        for rank in range(ranks):
            for chunk in UpdatePlan(update, batch, 3, rank, ranks).mine:
                drawn.update(rows_for_groups(chunk.samples, size, batch, count, seed))
        assert set(drawn.values()) == {size}
        assert len(drawn) == batch // size
        seen.update(drawn.keys())
        if update % 2:
            assert len(set(drawn) | set(before)) == 12
        before = drawn
    assert set(seen) == set(range(count))


def test_where_rows_are_few_an_update_draws_all_of_them_equally_often():
    drawn = Counter(rows_for_groups(range(24, 48), 4, 24, 3, 0))
    assert drawn == dict.fromkeys(range(3), 8)


def test_groups_are_numbered_through_the_run():
    assert group_numbers([0, 3, 4, 11], 4) == [0, 0, 1, 2]


@pytest.mark.parametrize("group", [2, 4, 6, 8])
@pytest.mark.parametrize("micro_batch", [2, 3, 4, 5])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_whole_groups_stay_on_one_process_and_every_sample_has_one(ranks, micro_batch, group):
    plans = [UpdatePlan(2, 48, micro_batch, rank, ranks, group, whole_groups=True) for rank in range(ranks)]
    owners = {}
    for plan in plans:
        assert plan.chunks == plans[0].chunks
        assert [
            chunk for chunk, owner in zip(plan.chunks, plan.owners, strict=True) if owner == plan.rank
        ] == (plan.mine)
        for chunk in plan.mine:
            assert len(chunk.samples) <= micro_batch
            for sample in chunk.samples:
                assert sample not in owners
                owners[sample] = plan.rank
    assert sorted(owners) == list(range(96, 144))
    assert sum(chunk.share for chunk in plans[0].chunks) == pytest.approx(1)
    by_group = {}
    for sample, rank in owners.items():
        by_group.setdefault(sample // group, set()).add(rank)
    assert all(len(each) == 1 for each in by_group.values())
    assert set(owners.values()) == set(range(ranks))


def test_without_whole_groups_chunks_are_dealt_in_turn():
    plan = UpdatePlan(1, 10, 3, 1, 2, group=5)
    assert [chunk.samples for chunk in plan.chunks] == [(10, 11, 12), (13, 14, 15), (16, 17, 18), (19,)]
    assert plan.owners == [0, 1, 0, 1]
    assert [chunk.index for chunk in plan.mine] == [1, 3]
    beside = plan.resized(4)
    assert [chunk.samples for chunk in beside.chunks] == [(4, 5, 6), (7,)]
    assert (beside.rank, beside.ranks, beside.micro_batch) == (1, 2, 3)


# Collecting.


def collected(policy, plan, window=None, reward=brightness, noise=None, **options):
    dynamics = policy.dynamics.with_noise(noise) if noise else policy.dynamics.without_noise()
    rewards = open_rewards(reward)
    options = {"seed": 0, "scoring": ScoringConfig(wait=0.0), **options}
    return collect(policy, plan, PROMPTS, rewards, window=window, dynamics=dynamics, **options)


def test_a_rollout_has_the_samples_their_conditions_and_rewards_in_order():
    policy, plan = policy_of("sd3", steps=STEPS), UpdatePlan(1, 6, 4, group=3)
    rollout = collected(policy, plan)
    assert [each.chunk for each in rollout.chunks] == plan.mine
    assert rollout.groups_N.tolist() == [0, 0, 0, 1, 1, 1]
    rows = [row for each in rollout.chunks for row in each.rows]
    places = rows_for_groups(range(6, 12), 3, 6, len(PROMPTS), 0)
    assert rows == [PROMPTS[place] for place in places]
    latents = torch.cat([each.latents for each in rollout.chunks])
    with torch.no_grad():
        expected = brightness(policy.denoiser.autoencoder.decode(latents), rows)
        images = policy.sample(policy.denoiser.encode(rows), noise_for_samples(range(6, 12), (4, 8, 8), 0))
    torch.testing.assert_close(rollout.rewards["brightness"], expected)
    torch.testing.assert_close(rollout.rewards["brightness"], brightness(images, rows))
    for each in rollout.chunks:
        assert each.trajectories is None
        words = policy.denoiser.encode(each.rows).tensors
        for name, value in each.condition.tensors.items():
            torch.testing.assert_close(value, words[name])


def test_without_a_window_noise_is_that_of_the_samples_and_nothing_is_kept():
    policy = policy_of("sd3", steps=STEPS)
    whole = collected(policy, UpdatePlan(0, 4, 4, group=2), noise=FLOW)
    apart = collected(policy, UpdatePlan(0, 4, 2, group=2), noise=FLOW)
    plain = collected(policy, UpdatePlan(0, 4, 4, group=2))
    latents = [torch.cat([each.latents for each in rollout.chunks]) for rollout in (whole, apart, plain)]
    torch.testing.assert_close(latents[0], latents[1], atol=1e-5, rtol=1e-5)
    assert (latents[0] - latents[2]).abs().max() > 0.01
    # With a window of all steps that have noise, the same steps are taken, and kept.
    kept = collected(policy, UpdatePlan(0, 4, 4, group=2), Window(last=STEPS - 1), noise=FLOW).chunks[0]
    torch.testing.assert_close(kept.latents, latents[0])
    torch.testing.assert_close(kept.trajectories.latents[:, -1], latents[0])


def test_samples_may_be_drawn_with_the_weights_of_a_snapshot():
    policy, plan = policy_of("sd3", steps=STEPS, base=True), UpdatePlan(0, 4, 2, group=2)
    policy.module.train()
    before = collected(policy, plan)
    with torch.no_grad():
        for value in policy.module.parameters():
            value += 0.05
    with_reference, now = collected(policy, plan, sampler="reference"), collected(policy, plan)
    for old, same, other in zip(before.chunks, with_reference.chunks, now.chunks, strict=True):
        assert torch.equal(old.latents, same.latents)
        assert not torch.equal(old.latents, other.latents)
    assert policy.module.training


def test_pairs_and_the_best_of_groups_come_from_a_rollout():
    plan = UpdatePlan(0, 6, 3, group=3, whole_groups=True)
    rollout = collected(policy_of("sd3", steps=STEPS), plan)
    rewards, groups = rollout.rewards["brightness"], rollout.groups_N
    best, worst = best_and_worst(rewards, groups)
    for chunk, high, low in zip(rollout.chunks, best.tolist(), worst.tolist(), strict=True):
        members = [sample - plan.first for sample in chunk.chunk.samples]
        assert rewards[high] == rewards[members].max()
        assert rewards[low] == rewards[members].min()
    assert top_mask(rewards, groups, 1).nonzero().flatten().tolist() == best.tolist()


def test_a_reward_that_fails_for_all_images_stops_the_rollout():
    def never(pixels, prompts):
        raise OSError("no route")

    with pytest.raises(RewardError, match="never is down: it failed for all 2 images of update 3"):
        collected(policy_of("sd3", steps=STEPS), UpdatePlan(2, 2, 2, group=2), reward=never, scoring=AT_ONCE)


# Dealing out.


def dealt(valid, parts=1, rank=0, ranks=1, width=2):
    valid = torch.tensor(valid)
    plan = UpdatePlan(3, len(valid), width, rank, ranks)
    mine = [
        Trajectories(chunk, None, range(2, 4), torch.zeros(width, 3, 4, 2, 2), torch.zeros(width, 2), None)
        for chunk in plan.mine
    ]
    worth = torch.arange(len(valid)).float()
    return make_minibatches(mine, plan, worth, valid, parts=parts)


def test_every_step_of_every_chunk_is_a_minibatch_and_shares_add_up():
    (step,) = dealt([True] * 6)
    assert [(each.trajectories.chunk.index, each.window_step) for each in step] == [
        (i, t) for i in range(3) for t in (0, 1)
    ]
    assert sum(each.share for each in step) == pytest.approx(1)
    assert [each.advantages.tolist() for each in step[::2]] == [[0, 1], [2, 3], [4, 5]]
    assert step[1].step_index.tolist() == [3, 3]


def test_a_chunk_in_which_nothing_counts_is_left_out():
    (step,) = dealt([True, True, False, False, True, False])
    assert [each.trajectories.chunk.index for each in step] == [0, 0, 2, 2]
    assert [each.share for each in step] == pytest.approx([1 / 3, 1 / 3, 1 / 6, 1 / 6])


def test_an_update_may_be_several_steps():
    steps = dealt([True] * 8, parts=2)
    assert [[each.trajectories.chunk.index for each in step] for step in steps] == [
        [0, 0, 1, 1],
        [2, 2, 3, 3],
    ]
    assert all(sum(each.share for each in step) == pytest.approx(1) for step in steps)
    assert len(dealt([True] * 4 + [False] * 4, parts=2)) == 1
    assert dealt([False] * 8) == []


@pytest.mark.parametrize("parts", [1, 2])
def test_processes_get_equally_many_minibatches_and_shares_add_up_over_all(parts):
    valid = [True, True] * 3 + [False] * 6 + [True] * 4
    by_rank = [dealt(valid, parts, rank, 2) for rank in range(2)]
    for ours, theirs in zip(*by_rank, strict=True):
        assert len(ours) == len(theirs)
        assert sum(each.share for each in [*ours, *theirs]) == pytest.approx(1)
    once = [each.trajectories.chunk.index for rank in by_rank for step in rank for each in step if each.share]
    assert sorted(once) == [0, 0, 1, 1, 2, 2, 6, 6, 7, 7]
