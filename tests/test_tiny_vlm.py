"""The tiny vision-language model: its parts, its data, its training, and ReFL by it, cut to seconds."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

import imagereward as RM
from benchmarks.lib import record
from benchmarks.lib.paths import TINY_VLM
from benchmarks.shapes import scorer_accuracy
from benchmarks.toy_models import tiny_vlm
from benchmarks.training import finetune, finetune_judge
from imagereward import shapes
from imagereward.agreement.intervals import ratio_interval

SHORT = ("updates=2", "evaluate_every=1", "batch_size=2", "micro_batch=2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory of two updates of its training."""
    work = tmp_path_factory.mktemp("tiny-vlm")
    tiny_vlm.write_rankings(work / "rankings", 4, 2)
    tiny_vlm.make(work, SHORT, captions=2)
    return work


def test_every_word_of_shapes_is_a_token_and_other_words_share_one():
    words = tiny_vlm.make_tokenizer()
    prompts = [shapes.prompt(i) for i in range(200)]
    for prompt in prompts:
        ids = words(prompt).input_ids
        assert words.unk_token_id not in ids
        assert words.decode(ids).replace(" ,", ",") == prompt
    assert words("a Red bicycle").input_ids == [*words("a red").input_ids, words.unk_token_id]


def test_it_begins_the_same_each_time_and_is_small():
    (first, processor), (second, _) = tiny_vlm.start(), tiny_vlm.start()
    for (name, value), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(value, other), name
    assert 2 * sum(value.numel() for value in first.parameters()) < 8e6
    image = PIL.Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    inputs = processor.image_processor([image], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 8, 8]]  # no pixel is resized
    shown = np.asarray(image, np.float32)[:8, :8] / 127.5 / 0.5 - 2  # the first patch, (x - 0.5) / 0.25
    patch = inputs["pixel_values"][0].reshape(3, 2, 8, 8)
    np.testing.assert_allclose(patch[:, 0].permute(1, 2, 0), shown, atol=1e-5)
    torch.testing.assert_close(patch[:, 0], patch[:, 1])


def test_of_its_drawings_the_better_ones_have_fewer_mistakes(trained):
    rows = json.loads((trained / "rankings/train.json").read_text())
    requests = [shapes.read(row["prompt"]) for row in rows]
    assert {len(request.groups) for request in requests} <= {1, 2}
    more = [tiny_vlm._ranking(trained / "rankings", "train", index) for index in range(4, 24)]
    found = np.array(
        [
            [
                shapes.measure(PIL.Image.open(trained / "rankings" / name), row["prompt"]).faithfulness
                for name in row["generations"]
            ]
            for row in more
        ]
    )
    assert [row["ranking"] for row in more] == [[1, 2, 3, 4]] * 20
    means = found.mean(0)
    assert means[0] > means[1] > means[2] > means[3]
    assert means[0] > 0.85
    assert means[3] < 0.2


def test_what_is_adopted_is_what_was_trained_in_half_precision(trained, tmp_path):
    tiny_vlm.adopt(trained / "tiny-vlm", tmp_path / "home")
    files = {path.name: path for path in (tmp_path / "home").iterdir()}
    assert sum(path.stat().st_size for path in files.values()) < 8e6
    assert not any(str(trained) in path.read_text() for path in files.values() if path.suffix == ".json")
    half = load_file(files["model.safetensors"])
    assert {value.dtype for value in half.values()} == {torch.float16}
    whole = load_file(trained / "tiny-vlm/model.safetensors")
    for name, value in whole.items():
        assert torch.equal(half[name], value.half()), name
    image = trained / "rankings/images/train-0-0.png"
    before, after = (RM.load(path, "cpu") for path in (trained / "tiny-vlm", tmp_path / "home"))
    assert after.dtype == torch.float32
    assert after.name == "home"
    assert after.score("a red ring", image) == pytest.approx(before.score("a red ring", image), abs=0.02)


def test_a_training_that_is_done_is_not_done_again(trained):
    before = (trained / "times.jsonl").read_text()
    assert tiny_vlm.make(trained, SHORT) == trained / "tiny-vlm"
    assert (trained / "times.jsonl").read_text() == before


def test_its_measure_names_intervals_length_and_size(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_vlm, "TINY_VLM", tmp_path / "home")
    tiny_vlm.adopt(trained / "tiny-vlm", tmp_path / "home")
    found = tiny_vlm.measure(trained, 4)
    assert found["parameters"] == sum(value.numel() for value in tiny_vlm.start()[0].parameters())
    assert [entry["update"] for entry in found["history"]] == [0, 1, 2]
    every = next(row for row in found["rows"] if row["pairs"] == "all clear pairs")
    assert every["low"] <= every["accuracy"] <= every["high"]
    assert every["count"] == sum(
        one.clearly_beats(other) for group in groups(4) for one in group for other in group
    )


def groups(prompts):
    """The truths of every prompt's drawings in `scorer_accuracy`, of prompts for at most two things."""
    rng = np.random.default_rng([scorer_accuracy.SEED, 3])
    found = []
    for _ in range(prompts):
        request = shapes.ask(rng, "test", 2)
        shapes.say(request, rng)
        found.append([truth for _, truth in shapes.candidates(request, scorer_accuracy.IMAGES, rng)])
    return found


class Bright:
    """A scorer that prefers bright pictures, and reads no prompts."""

    def score_pairs(self, prompts, images, batch_size):
        return [float(np.asarray(image).mean()) for image in images]


def test_intervals_are_over_prompts():
    rows = {row["pairs"]: row for row in scorer_accuracy.accuracy_rows(Bright(), 12, most_things=2)}
    rng = np.random.default_rng([scorer_accuracy.SEED, 3])
    right, pairs = np.zeros(12), np.zeros(12)
    for number in range(12):
        request = shapes.ask(rng, "test", 2)
        shapes.say(request, rng)
        drawn = shapes.candidates(request, scorer_accuracy.IMAGES, rng)
        for image, truth in drawn:
            for other, worse in drawn:
                if truth.clearly_beats(worse):
                    right[number] += np.asarray(image).mean() > np.asarray(other).mean()
                    pairs[number] += 1
    mean, low, high = ratio_interval(right, pairs, bounds=(0, 1))
    every = rows["all clear pairs"]
    assert [every[name] for name in ("accuracy", "low", "high", "count")] == pytest.approx(
        [mean, low, high, pairs.sum()]
    )
    assert every["prompts shuffled"] == pytest.approx(mean)  # it does not read prompts
    plain, _ = scorer_accuracy.accuracy(Bright(), 12)
    assert plain["all clear pairs"][0] != every["accuracy"]  # of prompts for up to four things


@pytest.mark.parametrize("method", finetune_judge.METHODS)
def test_refl_follows_it_and_a_run_leaves_a_record(trained, tmp_path, monkeypatch, method):
    for module, name, value in (
        (finetune_judge, "HELD_OUT", 3),
        (finetune, "HELD_OUT", 3),
        (finetune_judge, "TRUE_DRAWINGS", 4),
        (finetune_judge, "TRAINED", 8),
        (finetune, "TRAINED", 8),
        (finetune, "STEPS", 6),
        (record, "RESULTS", tmp_path / "results"),
    ):
        monkeypatch.setattr(module, name, value)
    finetune_judge.target.cache_clear()
    judge = trained / "tiny-vlm"
    path = finetune_judge.measure(
        method,
        1,
        tmp_path,
        judge,
        updates=2,
        batch_size=2,
        micro_batch=2,
        steps=6,
        gradient={"mode": "one", "first_step": 4, "last_step": 5},
        evaluate_every=1,
    )
    finetune_judge.target.cache_clear()
    found = json.loads(path.read_text())
    assert path == tmp_path / f"results/finetune-judge/{finetune_judge.slug(method, 1)}.json"
    drawings = [shapes.pair(i, 7, "train", most_things=2) for i in range(4)]
    scores = [RM.load(judge, "cpu").score(prompt, image) for prompt, image in drawings]
    assert found["target"] == pytest.approx(np.mean(scores), abs=1e-3)
    assert set(found["measured"]) == {"faithfulness", "judge", "reward"}
    for each in found["measured"].values():
        before, after = each["of prompts"]
        assert len(before) == len(after) == 3
        gains = np.subtract(after, before)
        assert each["gained"] == pytest.approx(gains.mean(), abs=1e-3)
        assert each["low"] <= each["gained"] <= each["high"]
    assert found["measured"]["judge"]["gained"] != 0
    assert [point["update"] for point in found["curve"]] == [0, 1, 2]
    finetune_judge.tabulate()
    (row,) = json.loads((tmp_path / "results/finetune-judge.json").read_text())["rows"]
    assert row["method"] == method
    assert "of prompts" not in row["measured"]["judge"]


@pytest.mark.skipif(not TINY_VLM.is_dir(), reason="the trained model is not in this checkout")
def test_the_adopted_one_judges_as_is_published():
    published = json.loads((record.RESULTS / "tiny-vlm.json").read_text())
    rows = {row["pairs"]: row for row in published["rows"]}
    assert rows["faithfulness, one mistake"]["low"] > 0.5
    found = scorer_accuracy.accuracy_rows(RM.load(TINY_VLM, "cpu"), 60, most_things=2)
    every = next(row for row in found if row["pairs"] == "faithfulness, one mistake")
    assert every["high"] > rows["faithfulness, one mistake"]["low"]
    assert every["low"] < rows["faithfulness, one mistake"]["high"]
