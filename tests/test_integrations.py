"""Adapters to other libraries' loops, against the scorer's own verbs."""

import copy
import math
import re
import types
from pathlib import Path

import numpy as np
import PIL.Image
import pipelines
import pytest
import torch
from conftest import pictures, small_scorer

import imagereward as RM
from imagereward.errors import ImageReadError, InputError, NonFiniteScoreError
from imagereward.integrations import comfyui
from imagereward.integrations.best_of_n import best_of
from imagereward.integrations.reward_functions import ddpo_reward, flow_grpo_reward, trl_reward
from imagereward.integrations.torchmetrics import RewardMetric
from imagereward.scoring.api import PairScorer

PROMPTS = ["a red bicycle", "a cat", "a cat"]


def drawing(prompt, *, num_images_per_prompt, generator, **options):
    """A pipeline that draws what its generators say."""
    assert len(generator) == num_images_per_prompt
    noise = [torch.rand(8, 8, 3, generator=each) for each in generator]
    images = [PIL.Image.fromarray((each * 255).byte().numpy()) for each in noise]
    return types.SimpleNamespace(images=images)


@pytest.fixture(scope="module")
def scorer():
    return small_scorer("ImageReward")


@pytest.fixture(scope="module")
def images():
    return [picture.resize((40, 40)) for picture in pictures(3)]


@pytest.fixture(scope="module")
def expected(scorer, images):
    return scorer.score_pairs(PROMPTS, images)


def as_array(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def as_tensor(images) -> torch.Tensor:
    return torch.from_numpy(as_array(images)).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("form", [list, as_array, as_tensor])
def test_rewards_take_images_as_trainers_have_them(scorer, images, expected, form):
    scores, meta = ddpo_reward(scorer)(form(images), tuple(PROMPTS), [{}] * 3)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert meta == {}
    details, meta = flow_grpo_reward(scorer)(form(images), PROMPTS, [{}] * 3, only_strict=True)
    assert details == {"ImageReward": scores, "avg": scores}
    assert meta == {}


def test_a_trl_reward_reads_the_arguments_it_is_told_to(scorer, images, expected):
    chats = [[{"role": "system", "content": "be brief"}, {"role": "user", "content": p}] for p in PROMPTS]
    parts = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
        for prompt in PROMPTS
    ]
    reward = trl_reward(scorer)
    assert reward.__name__ == "ImageReward"
    for prompts in (PROMPTS, chats, parts):
        scores = reward(prompts=prompts, completions=["?"] * 3, completion_ids=[[1]] * 3, images=images)
        assert scores == expected
    answers = [[{"role": "assistant", "content": prompt}] for prompt in PROMPTS]
    described = trl_reward(scorer, images="image", prompts="completions")
    assert described(prompts=chats[::-1], completions=answers, image=[[each] for each in images]) == expected


def test_rewards_refuse_what_they_cannot_score_and_never_say_zero(scorer, images):
    with pytest.raises(InputError, match="passes no 'images'; it passes prompts, completions"):
        trl_reward(scorer)(prompts=PROMPTS, completions=PROMPTS)
    with pytest.raises(InputError, match=r"images\[0\] holds 2 images"):
        trl_reward(scorer)(prompts=PROMPTS[:1], images=[images[:2]])
    with pytest.raises(InputError, match=r"prompts\[0\] is int; expected text"):
        trl_reward(scorer)(prompts=[3], images=images[:1])
    with pytest.raises(ImageReadError):
        flow_grpo_reward(scorer)([*images[:2], b"no image"], PROMPTS, {})
    with pytest.raises(InputError, match="2 prompts and 3 images"):
        ddpo_reward(scorer)(images, PROMPTS[:2], {})


def test_best_of_ranks_what_a_diffusers_pipeline_draws(scorer):
    pipeline = pipelines.sd()
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "height": 16, "width": 16}
    ranking = best_of(pipeline, scorer, "a cat", n=5, seed=7, batch_size=2, **options)
    assert len(ranking) == 5
    assert ranking.rewards == scorer.score("a cat", ranking.images)
    again = best_of(pipeline, scorer, "a cat", n=1, seed=7 + ranking.order[0], **options)
    assert as_array([again.best]) == pytest.approx(as_array([ranking.best]), abs=1)
    assert len({image.tobytes() for image in ranking.images}) == 5


def test_best_of_refuses_what_cannot_be(scorer):
    assert len(best_of(drawing, scorer, "a cat")) == 8
    with pytest.raises(InputError, match="n=0"):
        best_of(drawing, scorer, "a cat", 0)
    with pytest.raises(InputError, match="best_of sets generator itself"):
        best_of(drawing, scorer, "a cat", generator=None)
    short = lambda *_, **__: types.SimpleNamespace(images=[])  # noqa: E731
    with pytest.raises(InputError, match="asked for 1 images and returned 0"):
        best_of(short, scorer, "a cat")


class Illegible(PairScorer):
    """A judge whose verdict on the second image cannot be read."""

    name, may_be_nan = "judge", True

    def score_pairs(self, prompts, images, *, batch_size=None):
        return [math.nan if place == 1 else 1.0 + place for place in range(len(images))]


def test_a_score_that_is_missing_is_no_reward(images):
    judge = Illegible()
    assert trl_reward(judge)(prompts=PROMPTS, completions=PROMPTS, images=images) == [1.0, None, 3.0]
    for reward in (ddpo_reward(judge), flow_grpo_reward(judge)):
        with pytest.raises(NonFiniteScoreError, match="judge gave no score to 1 of 3 images: images 1;"):
            reward(images, PROMPTS, {})
    metric = RewardMetric(judge)
    metric.update(images, PROMPTS)
    assert float(metric.compute()) == 2.0
    assert (int(metric.count), int(metric.unscored)) == (2, 1)


def test_clones_of_the_metric_share_its_scorer(scorer, images, expected, monkeypatch):
    copies = []
    monkeypatch.setattr(type(scorer), "__deepcopy__", lambda *_: copies.append(1), raising=False)
    metric = RewardMetric(scorer)
    clone = metric.clone()
    clone.update(images, PROMPTS)
    assert copies == []
    assert float(clone.compute()) == pytest.approx(np.mean(expected), abs=1e-5)
    assert int(metric.count) == 0


def test_the_metric_is_the_mean_of_all_images(scorer, images, expected):
    metric = RewardMetric(scorer)
    metric.update(as_tensor(images[:2]), PROMPTS[:2])
    metric.update(images[2:], "a cat")
    assert float(metric.compute()) == pytest.approx(np.mean(expected), abs=1e-5)
    assert metric.higher_is_better
    assert not list(metric.parameters())
    assert metric.state_dict() == {}
    other = copy.deepcopy(metric)
    metric.reset()
    assert float(other.compute()) == pytest.approx(np.mean(expected), abs=1e-5)
    assert float(metric(images[:1], PROMPTS[0])) == pytest.approx(expected[0], abs=1e-5)
    with pytest.raises(InputError, match="no images"):
        metric.update([], "a")


@pytest.mark.parametrize("form", ["picture", "tensor", "array", "path", "batch of one"])
def test_the_metric_takes_one_image_in_every_form(scorer, images, expected, form, tmp_path):
    images[0].save(tmp_path / "one.png")
    one = {
        "picture": images[0],
        "tensor": as_tensor(images[:1])[0],
        "array": np.asarray(images[0]),
        "path": str(tmp_path / "one.png"),
        "batch of one": as_tensor(images[:1]),
    }[form]
    metric = RewardMetric(scorer)
    metric.update(one, PROMPTS[0])
    assert float(metric.compute()) == pytest.approx(expected[0], abs=1e-5)
    assert int(metric.count) == 1
    metric.update(one, PROMPTS[:1])
    assert int(metric.count) == 2
    with pytest.raises(InputError, match="3 prompts and 1 images"):
        metric.update(one, PROMPTS)


def test_the_metric_is_one_over_all_processes(scorer, images, expected):
    def gather(value, group):  # in the order of the states: totals are floats, counts are not
        return [metric.total if value.is_floating_point() else metric.count for metric in metrics]

    options = {"dist_sync_fn": gather, "distributed_available_fn": lambda: True}
    metrics = [RewardMetric(scorer, **options) for _ in range(2)]
    metrics[0].update(images[:2], PROMPTS[:2])
    metrics[1].update(images[2:], PROMPTS[2:])
    # Of all three images, not of the two means.
    assert float(metrics[0].compute()) == pytest.approx(np.mean(expected), abs=1e-5)


def test_the_comfyui_node_gives_the_best_images_first(scorer, images, monkeypatch):
    comfyui._scorer.cache_clear()
    monkeypatch.setattr(comfyui, "load", lambda name: scorer)
    (node,) = (kind() for kind in comfyui.NODE_CLASS_MAPPINGS.values())
    assert set(comfyui.NODE_DISPLAY_NAME_MAPPINGS) == set(comfyui.NODE_CLASS_MAPPINGS)
    asked = node.INPUT_TYPES()["required"]
    batch = as_tensor(images).permute(0, 2, 3, 1)
    call = dict(zip(asked, (batch, "a cat", asked["model"][1]["default"], 2)))
    best, scores, text = getattr(node, node.FUNCTION)(**call)
    ranking = scorer.rank("a cat", images)
    assert torch.equal(best, batch[ranking.order[:2]])
    assert scores == pytest.approx([ranking.rewards[index] for index in ranking.order[:2]], abs=1e-5)
    assert len(text.splitlines()) == 2
    comfyui._scorer.cache_clear()


def test_the_python_of_the_page_runs_as_written(tmp_path, monkeypatch, images, capsys):
    monkeypatch.chdir(tmp_path)
    by_name = {"ImageReward-v1.0": "ImageReward", "Aesthetic": "Aesthetic"}
    monkeypatch.setattr(RM, "load", lambda name: small_scorer(by_name[name]))
    monkeypatch.setattr("imagereward.ensembles.load", lambda name: small_scorer(by_name[name]))
    page = (Path(__file__).parents[1] / "docs/integrations.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 6
    names: dict = {"pipeline": drawing, "images": images, "prompts": PROMPTS, "metadata": {}}
    for block in blocks:
        exec(block, names)
    assert (tmp_path / "best.png").exists()
    assert "a red bicycle" in capsys.readouterr().out
    assert len(names["scores"]["avg"]) == 3
    assert names["described"](completions=PROMPTS, image=images)
