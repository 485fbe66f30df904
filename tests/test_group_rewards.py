"""Rewards of whole groups: win rates by hand, groups that arrive in pieces, failures, one process and two."""

import json
import math
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_grpo import grpo_of, run, small
from test_processes import check_equal, launched
from test_refl import PROMPTS, brightness, plan_of, refl_of

from imagereward.errors import InputError, RewardError
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.requests import Request
from imagereward.tuning.evaluation.evaluate import Evaluation
from imagereward.tuning.rewards.groups import GroupReward, PairwiseJudge, win_rates
from imagereward.tuning.rewards.scoring import RewardPool, ScoringConfig
from imagereward.tuning.rewards.weighted import Rewards, open_rewards
from imagereward.tuning.rollouts.collect import collect
from imagereward.tuning.trainer_config import EvaluationConfig

NAN = float("nan")
AT_ONCE = ScoringConfig(retries=2, wait=0.0)
ALL_OF_THREE = torch.tensor([[0, 1], [0, 2], [1, 2]])


class Brighter(PairwiseJudge):
    """Prefers the brighter image."""

    name = "brighter"

    def compare(self, row, first, second):
        return (torch.sign(brightness(first, None) - brightness(second, None)) + 1) / 2


brighter = Brighter()


class Spread(GroupReward):
    """An image's distance from the mean image of its group; remembers what it was given."""

    def __init__(self):
        self.given = []

    def group_rewards(self, pixels, row):
        self.given.append((pixels.clone(), row))
        return (pixels - pixels.mean(0)).square().mean((1, 2, 3))


def images(count):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def pooled(reward, sizes, group, rows=None, config=AT_ONCE):
    """The batches' rewards, submitted in batches of these sizes."""
    pixels = images(sum(sizes))
    rows = rows or [f"prompt {at // group}" for at in range(sum(sizes))]
    with RewardPool(open_rewards(reward), config, group) as pool:
        for start, stop in pairwise([sum(sizes[:at]) for at in range(len(sizes) + 1)]):
            pool.submit(pixels[start:stop], rows[start:stop])
        return pixels, pool.results()


# Win rates.


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([1, 1, 1], [1, 0.5, 0]),
        ([0, 0, 0], [0, 0.5, 1]),
        ([1, 0, 1], [0.5, 0.5, 0.5]),  # each beats one other
        ([0.5, 0.5, 1], [0.5, 0.75, 0.25]),
        ([1, NAN, 0], [0.75, 0, 0.75]),
        ([NAN, NAN, NAN], [0.5, 0.5, 0.5]),
    ],
)
def test_win_rates_by_hand(verdicts, expected):
    found = win_rates(torch.tensor(verdicts, dtype=torch.float32), ALL_OF_THREE, 3)
    assert found.tolist() == expected


def test_pairs_may_be_compared_in_both_orders_or_not_at_all():
    # 0 wins in both orders; 1 against 2 is whoever comes first.
    pairs = torch.tensor([[0, 1], [1, 0], [1, 2], [2, 1]])
    found = win_rates(torch.tensor([1.0, 0, 1, 1]), pairs, 4)
    assert found[:3].tolist() == [1, 0.25, 0.5]
    assert found[3].isnan()


@pytest.mark.parametrize(
    ("verdicts", "pairs", "message"),
    [
        ([0.7], [[0, 1]], r"a verdict is 0.7; expected 1, 0.5, 0 or NaN"),
        ([math.inf], [[0, 1]], r"a verdict is inf"),
        ([1.0], [[0, 2]], r"beyond 0\.\.1"),
        ([1.0], [[-1, 1]], r"beyond 0\.\.1"),
        ([1.0], [[1, 1]], "an image with itself"),
        ([1.0, 0.0], [[0, 1]], r"expected \[2, 2\]"),
    ],
)
def test_comparisons_that_make_no_sense_are_refused(verdicts, pairs, message):
    with pytest.raises(InputError, match=message):
        win_rates(torch.tensor(verdicts), torch.tensor(pairs), 2)


def test_a_judge_sees_every_pair_of_a_group_once_and_gives_shares_of_wins():
    pixels = images(5)
    found = brighter.group_rewards(pixels, Request("a"))
    each = brightness(pixels, None)
    for mine, worth in zip(found.tolist(), each, strict=True):
        assert mine == int((each < worth).sum()) / 4


def test_a_judge_without_any_verdict_has_no_rewards():
    class Silent(PairwiseJudge):
        def compare(self, row, first, second):
            return torch.full((len(first),), NAN)

    assert Silent().group_rewards(images(3), Request("a")).isnan().all()
    assert Silent.name == "Silent"


# Groups.


@pytest.mark.parametrize("sizes", [[12], [4, 4, 4], [3, 3, 3, 3], [5, 1, 6], [8, 4], [1] * 12])
def test_groups_are_whole_whatever_the_batches(sizes):
    spread = Spread()
    rewards = Rewards({"light": (1.0, brightness), "spread": (2.0, spread)})
    pixels, found = pooled(rewards, sizes, 4)
    assert [len(batch.rewards["spread"]) for batch in found] == sizes
    assert all(list(batch.rewards) == ["light", "spread"] for batch in found)
    given = sorted(spread.given, key=lambda each: each[1].prompt)  # threads may swap them
    assert [row.prompt for _, row in given] == ["prompt 0", "prompt 1", "prompt 2"]
    assert torch.equal(torch.cat([each for each, _ in given]), pixels)
    groups = pixels.unflatten(0, (3, 4))
    expected = (groups - groups.mean(1, keepdim=True)).square().mean((2, 3, 4)).flatten()
    torch.testing.assert_close(torch.cat([batch.rewards["spread"] for batch in found]), expected)
    light = torch.cat([batch.rewards["light"] for batch in found])
    torch.testing.assert_close(light, brightness(pixels, None))


class Failing(GroupReward):
    """Fails for `times` calls by raising or by one NaN, then gives 0, 1, 2, ...; or never for a prompt."""

    def __init__(self, times, raises=True, never=""):
        self.times, self.raises, self.never, self.asked = times, raises, never, []

    def group_rewards(self, pixels, row):
        self.asked.append((row.prompt, len(pixels)))
        found = torch.arange(len(pixels)).float()
        if len(self.asked) <= self.times or row.prompt == self.never:
            if self.raises:
                raise TimeoutError("no answer")
            found[0] = NAN
        return found


@pytest.mark.parametrize("raises", [True, False])
def test_a_group_that_failed_is_asked_again_as_a_whole(raises):
    failing = Failing(2, raises)
    _, found = pooled(failing, [2, 2], 4)
    assert failing.asked == [("prompt 0", 4)] * 3
    assert torch.cat([batch.rewards["Failing"] for batch in found]).tolist() == [0, 1, 2, 3]
    assert not any(batch.causes for batch in found)


def test_a_group_that_fails_for_ever_has_no_rewards_and_others_keep_theirs():
    failing = Failing(0, never="prompt 1")
    _, found = pooled(failing, [2, 2, 2, 2], 4)
    assert len(failing.asked) == 1 + 3
    assert torch.cat([batch.rewards["Failing"] for batch in found])[:4].tolist() == [0, 1, 2, 3]
    assert torch.cat([batch.rewards["Failing"] for batch in found])[4:].isnan().all()
    assert found[-1].causes == {"Failing": "TimeoutError: no answer"}


def test_what_one_image_lacks_after_all_is_missing_from_that_image_alone():
    _, (found,) = pooled(Failing(9, raises=False), [4], 4)
    assert found.rewards["Failing"].tolist()[1:] == [1, 2, 3]
    assert found.rewards["Failing"][0].isnan()


def test_groups_that_are_not_complete_mixed_or_of_one_image_are_refused():
    with pytest.raises(InputError, match="2 images are left of a group of 4"):
        pooled(brighter, [4, 2], 4)
    with pytest.raises(InputError, match=r"group of 2 images has different prompts: \['a', 'b'\]"):
        pooled(brighter, [2], 2, rows=["a", "b"])
    for group in (None, 1):
        with pytest.raises(InputError, match=r"reward brighter is given whole groups .* at least 2"):
            RewardPool(open_rewards(brighter), AT_ONCE, group)


@pytest.mark.parametrize(
    "given", [lambda pixels: 0.5, lambda pixels: pixels.mean(), lambda pixels: pixels[:1, 0, 0, 0]]
)
def test_rewards_and_verdicts_of_another_shape_are_a_mistake(given):
    class Wrong(GroupReward):
        def group_rewards(self, pixels, row):
            return given(pixels)

    class WrongJudge(PairwiseJudge):
        def compare(self, row, first, second):
            return given(first)

    with pytest.raises(InputError, match=r"reward Wrong gave .*expected a tensor \[3\]"):
        pooled(Wrong(), [3], 3)
    with pytest.raises(InputError, match=r"WrongJudge.compare gave .*expected a tensor \[3\]"):
        pooled(WrongJudge(), [3], 3)


# Where they may be used.


def test_a_name_finds_an_object_and_a_class():
    here = __name__
    rewards = open_rewards({f"{here}:brighter": 1.0, f"{here}:Spread": 0.5, "test_refl:brightness": 1.0})
    assert rewards.of_groups == [f"{here}:brighter", f"{here}:Spread"]
    # The name imports the module once, so that an object is the one that is known.
    assert rewards.parts[f"{here}:brighter"][1] is sys.modules[here].brighter
    assert list(rewards.without_groups().parts) == ["test_refl:brightness"]
    assert open_rewards(brighter).without_groups() is None
    with pytest.raises(InputError, match="no attribute 'nothing'"):
        open_rewards(f"{here}:nothing")


def test_objectives_without_groups_refuse_them():
    rewards = open_rewards(brighter)
    with pytest.raises(
        InputError, match="reward brighter is given whole groups of images, and here are none"
    ):
        rewards(images(2), PROMPTS[:2])
    with pytest.raises(InputError, match="brighter is not differentiable"):
        rewards.check_differentiable((16, 16), "a")
    objective, policy = refl_of(brighter), small("sd")
    with pytest.raises(InputError, match="brighter is given whole groups"):
        objective.loss(policy, next(objective.minibatches(policy, plan_of(objective)))[0])


def test_evaluations_leave_them_out(tmp_path):
    both = Rewards({"light": (1.0, brightness), "brighter": (9.0, brighter)})
    policy = small()
    config = EvaluationConfig(seeds=2, batch_size=2)
    watch = Evaluation(policy, PROMPTS[:1], both, open_rewards(brighter), config, tmp_path, 0, AT_ONCE)
    found = watch.measure(images(2)[None], 0)
    assert found["reward"] == pytest.approx(float(images(2).mean()))
    assert "held_out" not in found


def test_an_evaluation_does_without_a_watched_reward_that_failed(tmp_path):
    def second_only(pixels, prompts):
        return torch.tensor([NAN if torch.equal(each, images(2)[0]) else 7.0 for each in pixels])

    rewards = Rewards({"light": (2.0, brightness), "watched": (0.0, second_only)})
    config = EvaluationConfig(seeds=2, batch_size=2)
    found = Evaluation(small(), PROMPTS[:1], rewards, None, config, tmp_path, 0, AT_ONCE).measure(
        images(2)[None], 0
    )
    assert found["reward"] == pytest.approx(2 * float(images(2).mean()))
    assert (found["reward/watched"], found["reward/failed"]) == (7, 1)


def test_a_rollout_whose_groups_are_divided_is_refused():
    policy = small()
    with pytest.raises(InputError, match=r"brighter is given whole groups.*whole=True"):
        collect(
            policy,
            UpdatePlan(0, 4, 2, group=2),
            PROMPTS,
            open_rewards(brighter),
            window=None,
            dynamics=policy.dynamics,
            seed=0,
        )


# GRPO.


@pytest.mark.parametrize("micro_batch", [2, 3, 4, 6])
def test_grpo_learns_from_win_rates_whatever_the_micro_batch(micro_batch):
    """By an independent count over the images that the function beside it saw."""
    seen = {}

    def watching(pixels, prompts):
        for image, prompt in zip(pixels, prompts, strict=True):
            seen.setdefault(prompt, []).append(float(image.mean()))
        return torch.zeros(len(pixels))

    rewards = Rewards({"watching": (1.0, watching), "brighter": (1.0, brighter)})
    objective = grpo_of(
        reward=rewards, group=3, batch_size=6, micro_batch=micro_batch, scoring=ScoringConfig(workers=1)
    )
    policy = small()
    batches = next(objective.minibatches(policy, plan_of(objective)))
    found = {}
    for batch in batches:
        if batch.window_step == 0:
            for number, worth in zip(
                batch.trajectories.chunk.samples, batch.advantages.tolist(), strict=True
            ):
                found[number] = worth
    expected = []
    for lights in seen.values():
        rates = [sum((a > b) + (a == b) / 2 for b in lights) / 2 - 0.25 for a in lights]
        expected += [rate - sum(rates) / 3 for rate in rates]
    std = (sum(rate**2 for rate in expected) / 6) ** 0.5 + 1e-4
    assert [found[number] for number in range(6)] == pytest.approx(
        [rate / std for rate in expected], rel=1e-4
    )
    metrics = objective.end_update(policy, 0)
    assert metrics["reward/brighter"] == pytest.approx(0.5)


def test_a_judge_that_is_down_stops_the_training_and_is_named():
    objective = grpo_of(reward=Failing(10**6), scoring=ScoringConfig(retries=0, wait=0.0))
    with pytest.raises(RewardError, match=r"reward Failing is down.*TimeoutError: no answer"):
        list(objective.minibatches(small(), plan_of(objective)))


def test_processes_without_a_group_are_refused_by_all():
    objective = grpo_of(reward=brighter, group=4, batch_size=4, micro_batch=1)
    for rank in range(2):
        with pytest.raises(InputError, match=r"only 1 of 2 processes would draw samples \(whole groups"):
            next(objective.minibatches(None, plan_of(objective, 0, rank, 2)))


def test_two_processes_judge_whole_groups_and_learn_what_one_does(tmp_path):
    call = """import test_group_rewards
test_grpo.run(out, reward=test_group_rewards.brighter, updates=1, batch_size=12, group=3, micro_batch=2,
    max_gradient_norm=1e6)"""
    one, two = launched(call, tmp_path)
    check_equal(one, two, [1])
    entries = [e for e in json.loads((one / "history.json").read_text()) if "reward/brighter" in e]
    assert entries[0]["reward/brighter"] == pytest.approx(0.5)
    assert entries[0]["counted"] > 0


def test_the_judge_of_the_documentation_is_found_and_judges(tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs/objectives.md").read_text()
    (code,) = re.findall(r"```python\n# my_judge.py\n(.*?)```", page, re.S)
    (tmp_path / "my_judge.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (_, judge) = open_rewards("my_judge:Judge").parts["my_judge:Judge"]
    plain = torch.full((2, 3, 8, 8), 0.5)
    assert judge.group_rewards(torch.cat([images(1)[..., :8, :8], plain]), Request("a")).tolist() == [
        1,
        0.25,
        0.25,
    ]


def test_a_run_takes_a_judge_by_its_name(tmp_path):
    run(tmp_path / "out", reward=f"{__name__}:brighter", updates=1)
    history = json.loads((tmp_path / "out/history.json").read_text())
    assert any(f"reward/{__name__}:brighter" in entry for entry in history)
