"""Rewards that fail, wait, or are elsewhere: tried again, counted, named, and never 0."""

import json
import math
import threading
import time

import pytest
import torch
from conftest import small_scorer
from test_grpo import grpo_of, run, small
from test_refl import PROMPTS, brightness, plan_of

import imagereward as RM
from benchmarks.lib.serving import serving
from imagereward.errors import InputError, NonFiniteScoreError, RemoteError, RewardError
from imagereward.images.reading import to_pil
from imagereward.rewards.jpeg import jpeg_compressibility
from imagereward.tuning.evaluation.evaluate import Evaluation, sample_images
from imagereward.tuning.rewards.scoring import RewardPool, ScoredBatch, ScoringConfig, require_scores
from imagereward.tuning.rewards.weighted import open_rewards
from imagereward.tuning.trainer_config import EvaluationConfig

AT_ONCE = ScoringConfig(wait=0, retries=2)


def images(count=3):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def scored(reward, config=AT_ONCE, rows=PROMPTS):
    with RewardPool(open_rewards(reward), config) as scorers:
        scorers.submit(images(len(rows)), rows)
        (found,) = scorers.results()
    return found


class Flaky:
    """Raises for the first few calls; remembers what it was asked for."""

    __name__ = "flaky"

    def __init__(self, failures, bad=()):
        self.failures, self.bad, self.asked = failures, bad, []

    def __call__(self, pixels, prompts):
        self.asked.append(list(prompts))
        if len(self.asked) <= self.failures:
            raise TimeoutError("no answer")
        missing = torch.tensor([prompt in self.bad for prompt in prompts])
        return torch.where(missing, torch.nan, brightness(pixels, prompts))


def test_a_reward_that_fails_is_asked_again():
    flaky = Flaky(2)
    found = scored(flaky)
    torch.testing.assert_close(found.rewards["flaky"], brightness(images(), PROMPTS))
    assert len(flaky.asked) == 3
    assert found.causes == {}


def test_after_so_many_times_it_is_not_a_number_and_never_0(caplog):
    flaky = Flaky(3)
    found = scored(flaky)
    assert found.rewards["flaky"].isnan().all()
    assert found.causes == {"flaky": "TimeoutError: no answer"}
    assert len(flaky.asked) == 3
    assert "reward flaky failed for 3 of 3 images: TimeoutError: no answer" in caplog.text


def test_only_what_failed_is_asked_again():
    flaky = Flaky(0, bad=PROMPTS[1:2])
    found = scored(flaky)
    assert flaky.asked == [PROMPTS, PROMPTS[1:2], PROMPTS[1:2]]
    assert found.rewards["flaky"].isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found.rewards["flaky"][::2], brightness(images(), PROMPTS)[::2])


def test_a_wait_doubles(monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    scored(Flaky(3), ScoringConfig(wait=0.1, retries=3))
    assert slept == [0.1, 0.2, 0.4]


def test_a_reward_of_the_wrong_shape_is_a_mistake_and_not_asked_again():
    calls = []

    def wrong(pixels, prompts):
        calls.append(1)
        return pixels.mean()

    with pytest.raises(InputError, match="reward wrong gave"):
        scored(wrong)
    assert len(calls) == 1


def test_several_rewards_fail_one_by_one():
    with RewardPool(
        open_rewards({"test_refl:brightness": 1.0, "test_scoring:never": 1.0}), AT_ONCE
    ) as scorers:
        scorers.submit(images(), PROMPTS)
        (found,) = scorers.results()
    assert found.rewards["test_refl:brightness"].isfinite().all()
    assert found.rewards["test_scoring:never"].isnan().all()


def never(pixels, prompts):
    raise OSError("the disk is on fire")


def test_a_reward_that_is_down_is_named():
    with pytest.raises(
        RewardError, match=r"reward never is down: it failed for all 4 images of update 1, the"
    ):
        one_update(never)
    require_scores(ScoredBatch({"a": torch.tensor([1.0, float("nan")])}, {}), "an update")


def test_a_reward_that_stays_away_is_not_asked_for_ever():
    flaky = Flaky(10**6)
    with RewardPool(open_rewards(flaky), ScoringConfig(workers=1, retries=2, wait=0)) as scorers:
        for _ in range(5):
            scorers.submit(images(), PROMPTS)
        found = scorers.results()
    assert len(flaky.asked) == 2 * 3
    assert all(each.rewards["flaky"].isnan().all() for each in found)
    assert {each.causes["flaky"] for each in found} == {"TimeoutError: no answer"}


def test_a_batch_that_cannot_be_scored_keeps_no_other_from_it():
    def all_but(pixels, prompts):
        if PROMPTS[0] in prompts:
            raise ValueError("not this one")
        return brightness(pixels, prompts)

    with RewardPool(open_rewards(all_but), ScoringConfig(workers=1, retries=0)) as scorers:
        for prompt in [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[1]]:
            scorers.submit(images()[:1], [prompt])
        found = [bool(each.rewards["all_but"].isfinite().all()) for each in scorers.results()]
    assert found == [False, True, False, True]


def test_an_image_that_is_no_number_is_not_scored():
    spoiled = images()
    spoiled[1, 0, 0, 0] = torch.nan
    said = pytest.raises(NonFiniteScoreError, match=f"the image drawn for '{PROMPTS[1]}' has pixels")
    with RewardPool(open_rewards(brightness), AT_ONCE) as scorers, said:
        scorers.submit(spoiled, PROMPTS)


def test_an_evaluation_leaves_out_what_failed_and_names_a_reward_that_is_down(tmp_path):
    def without_the_first(pixels, prompts):
        worth = brightness(pixels, prompts)
        return torch.where(torch.tensor([prompt == PROMPTS[0] for prompt in prompts]), torch.nan, worth)

    policy, rows = small(), list(PROMPTS)
    config = EvaluationConfig(seeds=1, batch_size=2)
    images = sample_images(policy, rows, 1, 0, 2, None)

    def judged(reward):
        watch = Evaluation(policy, rows, open_rewards(reward), None, config, tmp_path, 0, AT_ONCE)
        return watch.measure(images, 7)

    expected = float(brightness(images[1:, 0], rows).mean())
    found = judged(without_the_first)
    assert found["reward"] == pytest.approx(expected)
    assert found["reward/failed"] == 1
    assert "reward/failed" not in judged(brightness)
    with pytest.raises(RewardError, match=r"reward never is down: .* of the evaluation after update 7"):
        judged(never)


def one_update(reward):
    objective, policy = grpo_of(reward=reward, scoring=AT_ONCE), small()
    list(objective.minibatches(policy, plan_of(objective)))


def test_what_failed_is_counted_and_the_rest_is_learned_from():
    def without_the_first(pixels, prompts):
        worth = brightness(pixels, prompts)
        return torch.where(torch.arange(len(worth)) == 0, torch.nan, worth)

    objective = grpo_of(
        reward=without_the_first, group=3, micro_batch=3, batch_size=6, scoring=ScoringConfig(retries=0)
    )
    policy = small()
    batches = next(objective.minibatches(policy, plan_of(objective)))
    counted = torch.cat([batch.valid for batch in batches if batch.window_step == 0])
    assert counted.tolist() == [False, True, True, False, True, True]
    metrics = objective.end_update(policy, 0)
    assert metrics["failed"] == 2
    assert math.isfinite(metrics["reward"])


# Elsewhere.


def test_a_server_scores_as_the_scorer_does():
    scorer = small_scorer("CLIP")
    with serving(scorer) as url:
        by_name = scored(f"{url}#{scorer.name}")
        by_object = scored(RM.connect(url))
    expected = torch.tensor(scorer.score_pairs(PROMPTS, [to_pil(each) for each in images()]))
    for found in (by_name, by_object):
        torch.testing.assert_close(next(iter(found.rewards.values())), expected, atol=1e-5, rtol=1e-5)


def test_a_server_that_is_not_there_is_named_before_anything_is_trained():
    with pytest.raises(RemoteError, match=r"http://127\.0\.0\.1:9"):
        open_rewards("http://127.0.0.1:9")


def test_a_server_that_dies_is_a_reward_that_is_down():
    scorer = small_scorer("CLIP")
    with serving(scorer) as url:
        connected = RM.connect(url, retries=0)
    with pytest.raises(RewardError, match=r"is down: it failed for all 4 images of update 1, .*RemoteError"):
        one_update(connected)


def test_a_run_learns_from_a_server(tmp_path):
    with serving(small_scorer("CLIP")) as url:
        run(tmp_path / "out", reward=url, updates=1)
    history = json.loads((tmp_path / "out/history.json").read_text())
    assert any(f"reward/{url}" in entry for entry in history)


def test_while_a_reward_waits_the_next_batch_is_drawn():
    policy, second, waited = small(), threading.Event(), []
    encode, encoded = policy.denoiser.encode, []

    def encoding(rows):
        encoded.append(rows)
        if len(encoded) == 2:
            second.set()
        return encode(rows)

    def reward(pixels, prompts):
        waited.append(second.wait(60))
        return brightness(pixels, prompts)

    policy.denoiser.encode = encoding
    objective = grpo_of(reward=reward, micro_batch=2, batch_size=4)
    list(objective.minibatches(policy, plan_of(objective)))
    assert waited == [True, True]


def test_few_batches_wait_to_be_scored():
    gate, waiting = threading.Event(), []

    def reward(pixels, prompts):
        gate.wait(10)
        return torch.ones(len(prompts))

    with RewardPool(open_rewards(reward), ScoringConfig(workers=1)) as scorers:

        def submit():
            for number in range(4):
                scorers.submit(images(), PROMPTS)
                waiting.append(number)

        thread = threading.Thread(target=submit)
        thread.start()
        time.sleep(0.3)
        assert waiting == [0, 1]
        gate.set()
        thread.join()
        assert len(scorers.results()) == 4


# JPEG.


def test_what_is_plain_compresses_best():
    plain, noise = torch.full((1, 3, 64, 64), 0.5), torch.rand(1, 3, 64, 64)
    found = jpeg_compressibility(torch.cat([plain, noise]), ["", ""])
    assert found[0] > found[1]
    assert -1.5 < found[0] < 0  # kilobytes


def test_grpo_learns_from_a_reward_without_gradient(tmp_path):
    name = "imagereward.rewards.jpeg:jpeg_compressibility"
    run(tmp_path / "out", reward=name, updates=1)
    with pytest.raises(InputError, match="is not differentiable"):
        open_rewards(name).check_differentiable((16, 16), "a picture")
