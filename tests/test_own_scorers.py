"""Scorers of one's own by "module:attribute", everywhere that a scorer is named; PairScorer's verbs."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pictures

import imagereward as RM
from benchmarks.lib.serving import serving
from imagereward.bulk import score_table
from imagereward.errors import ImageRewardError, InputError, NonFiniteScoreError
from imagereward.lookup import find, is_reference
from imagereward.remote.exchange import run
from imagereward.scoring.api import PairScorer
from imagereward.serve import create_app
from imagereward.tuning.rewards.weighted import Rewards, open_rewards

ROOT = Path(__file__).parents[1]
MODULE = """
import torch
from benchmarks.lib.small_scorers import small_scorer
from imagereward.scoring.api import PairScorer


class Judge(PairScorer):
    name = "judge"

    def score_pairs(self, prompts, images, *, batch_size=None):
        return [float(len(prompt)) + image.size[0] / 1000 for prompt, image in zip(prompts, images)]


class Picky(Judge):
    def score_pairs(self, prompts, images, *, batch_size=None):
        return [float("nan")] * len(prompts)


def make_scorer(device=None, max_length=20):
    scorer = small_scorer("CLIP", seed=5)
    scorer.name = f"mine{max_length}"
    return scorer


def bright(pixels, prompts):
    return pixels.mean((1, 2, 3))


def placed(device):
    return small_scorer("CLIP", seed=5).to(device)


def changed(device=None):
    import imagereward as RM

    scorer = RM.load(CLIP, device)
    for value in scorer.clip_model.parameters():
        value.data = value.data * 1.1
    return scorer


def mix(device=None):
    import imagereward as RM

    return RM.ensemble({CLIP: 1.0, changed(device): 1.0}, device=device)


judge, number = Judge(), 3


def nothing():
    return None
"""


@pytest.fixture
def mine(tmp_path, monkeypatch, models):
    """The module `my_scorers` in the current directory; its name."""
    (tmp_path / "my_scorers.py").write_text(MODULE + f"\nCLIP = {models['CLIP']!r}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_scorers", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return "my_scorers"


@pytest.mark.parametrize("attribute", ["judge", "Judge"])
def test_what_scores_pairs_has_every_verb(mine, attribute):
    judge, images = RM.load(f"{mine}:{attribute}"), pictures(3)
    widths = [image.size[0] / 1000 for image in images]
    assert judge.score("abc", images) == pytest.approx([3 + width for width in widths])
    assert judge.score("abc", images[0]) == pytest.approx(3 + widths[0])
    assert judge.best_of("a", images, 2) == np.argsort(widths)[::-1][:2].tolist()
    assert judge.rank("a", images).best is images[int(np.argmax(widths))]
    assert judge.inference_rank("a", images)[0][int(np.argmax(widths))] == 1
    matrix = judge.score_matrix(["a", "abc"], images)
    assert matrix.shape == (2, 3)
    assert matrix[1, 0] - matrix[0, 0] == pytest.approx(2)
    with pytest.raises(InputError, match="nothing to score"):
        judge.score("a", [])


def test_a_pair_scorer_that_scores_nothing_says_so():
    with pytest.raises(NotImplementedError, match="neither score_pairs nor _scored"):
        type("Empty", (PairScorer,), {"name": "empty"})().score("a", pictures(1))


def test_a_score_that_is_no_number_is_an_error(mine):
    with pytest.raises(NonFiniteScoreError, match=r"judge gave 1 scores .* the first, nan, for .* with 'a'"):
        RM.load(f"{mine}:Picky").score("a", pictures(1))


def test_a_scorer_of_ones_own_keeps_its_weights_beside_the_one_it_was_made_of(mine, models):
    image, names = pictures(1)[0], [models["CLIP"], f"{mine}:changed"]
    own = [RM.load(name, "cpu").score("a", image) for name in names]
    assert own[0] != own[1]
    for order in (names, names[::-1]):
        both = RM.ensemble(dict.fromkeys(order, 1.0), device="cpu")
        parts = [scores[0] for scores in both.score_components("a", [image]).values()]
        assert parts == pytest.approx([own[names.index(name)] for name in order], abs=1e-6)


def test_files_that_decide_a_scorer_of_ones_own_are_its_module_and_its_components(mine, tmp_path):
    module = tmp_path / "my_scorers.py"
    assert RM.load(f"{mine}:changed", "cpu").files["source"] == module
    files = RM.load(f"{mine}:mix", "cpu").files
    assert {Path(path).name for path in files.values()} == {"my_scorers.py", "model.safetensors"}
    assert len(files) == 3


def test_a_factory_that_needs_a_device_gets_the_one_that_was_asked_for(mine):
    assert RM.load(f"{mine}:placed", "cpu").device.type == "cpu"


def test_a_function_scores_images_of_any_size(mine):
    images = pictures(3)
    scores = RM.load(f"{mine}:bright").score("", images)
    expected = [np.asarray(image).mean() / 255 for image in images]
    assert scores == pytest.approx(expected, abs=1e-6)


def test_a_factory_gets_the_options_that_it_has_parameters_for(mine):
    scorer = RM.load(f"{mine}:make_scorer", "cpu", max_length=9)
    assert scorer.name == "mine9"
    assert not any(each.requires_grad for each in scorer.parameters())
    assert RM.load(f"{mine}:make_scorer", "cpu", dtype="float64").dtype == torch.float64
    with pytest.raises(InputError, match="my_scorers:make_scorer' takes no kind"):
        RM.load(f"{mine}:make_scorer", "cpu", kind="CLIP")


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("my_scorers:none", "no attribute 'none'"),
        ("my_scorers:number", "is of type int; expected a PairScorer"),
        ("my_scorers:nothing", "is of type NoneType; expected a PairScorer"),
        ("my_scorrers:judge", "No module named 'my_scorrers'"),
        ("my_scorers:", 'names no module and attribute; expected "module:name"'),
        (":judge", 'names no module and attribute; expected "module:name"'),
    ],
)
def test_a_scorer_that_is_not_there_is_named_with_the_cause(mine, name, cause):
    for call in (RM.load, open_rewards):
        with pytest.raises(InputError, match=f"scorer='{name}'.*{cause}"):
            call(name)


def test_only_a_colon_without_a_slash_is_a_reference():
    assert all(map(is_reference, ("a.b:c", "json:")))
    assert not is_reference("ImageReward-v1.0")
    assert not any(map(is_reference, ("http://host:80", "C:\\model.pt", "C:/model.pt", "me/model", "a: b")))
    assert find("json:dumps", "scorer") is json.dumps


def test_an_ensemble_takes_scorers_of_ones_own_with_or_without_features(mine):
    weights = {f"{mine}:make_scorer": 2.0, f"{mine}:judge": 3.0, f"{mine}:bright": 0.5}
    together, images = RM.ensemble(weights, device="cpu"), pictures(3)
    alone = [RM.load(name, "cpu").score("abc", images) for name in weights]
    expected = np.array(list(weights.values())) @ np.array(alone)
    assert together.score("abc", images) == pytest.approx(expected.tolist(), abs=1e-5)
    assert list(together.score_components("abc", images).values()) == [pytest.approx(each) for each in alone]
    assert not together.differentiable  # the judge is not
    loaded = RM.load(f"{mine}:judge")
    assert RM.ensemble({loaded: 1.0}).score("abc", images[0]) == pytest.approx(loaded.score("abc", images[0]))


def test_an_ensemble_with_a_function_passes_its_gradient(mine):
    together = RM.ensemble({f"{mine}:make_scorer": 1.0, f"{mine}:bright": 100.0}, device="cpu")
    pixels = torch.rand(2, 3, 40, 40, requires_grad=True)
    together.reward(pixels, "a").sum().backward()
    alone = pixels.detach().clone().requires_grad_()
    RM.load(f"{mine}:make_scorer", "cpu").reward(alone, "a").sum().backward()
    torch.testing.assert_close(pixels.grad - alone.grad, torch.full_like(pixels, 100 / (3 * 40 * 40)))


def test_the_bulk_commands_take_a_scorer_without_features(mine, tmp_path):
    images = pictures(3)
    rows = []
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
        rows.append({"prompt": "a" * (index + 1), "image": f"{index}.png"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = ["judge", "bright", "make_scorer", "Picky"]
    models = [f"{mine}:{name}" for name in names]
    options = {"device": "cpu", "workers": 0, "batch_size": 2, "progress": False}
    score_table(tmp_path / "rows.jsonl", tmp_path / "out.jsonl", models[:3], **options)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for name in models[:3]:
        scorer = RM.load(name, "cpu")
        scores = scorer.score_pairs([row["prompt"] for row in rows], images)
        assert [row[f"score:{scorer.name}"] for row in found] == pytest.approx(scores, abs=1e-5)
    assert {row["tokens"] for row in found} == {len("a") + 2}
    score_table(tmp_path / "rows.jsonl", tmp_path / "bad.jsonl", models[3], **options)
    lines = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert ["not finite: the score of" in json.loads(line)["error"] for line in lines] == [True] * 3


def test_the_server_takes_a_scorer_without_features(mine):
    images = pictures(2)
    judge = RM.load(f"{mine}:judge")
    with serving({"judge": judge, "bright": RM.load(f"{mine}:bright")}) as url:
        remote = RM.connect(url, "judge")
        assert remote.score("abc", images) == pytest.approx(judge.score("abc", images))
        assert RM.connect(url, "bright").score("", images) == pytest.approx(
            RM.load(f"{mine}:bright").score("", images)
        )


def test_a_score_relative_to_other_images_is_not_divided_into_batches(mine):
    class Rival(type(RM.load(f"{mine}:judge"))):
        relative = True

    for use in (lambda: RM.ensemble({Rival(): 1.0}), lambda: create_app({"rival": Rival()})):
        with pytest.raises(InputError, match="'judge' scores an image relative to the others"):
            use()


def test_every_kind_of_reward_is_asked_the_same_way(mine):
    pixels = torch.rand(2, 3, 40, 40)
    rewards = open_rewards({f"{mine}:{name}": 1.0 for name in ("judge", "bright", "make_scorer")}, "cpu")
    total, each = rewards(pixels, ["a", "abc"])
    assert list(each) == [f"{mine}:judge", f"{mine}:bright", f"{mine}:make_scorer"]
    torch.testing.assert_close(total, torch.stack(list(each.values())).sum(0))
    assert [part.takes_turns for _, part in rewards.parts.values()] == [False, False, True]
    assert [part.differentiable for _, part in rewards.parts.values()] == [False, True, True]
    with pytest.raises(InputError, match="my_scorers:judge is not differentiable"):
        rewards.check_differentiable((16, 16), "a")


def test_an_ensemble_is_trained_by_its_components(scorers):
    ensemble, pixels = scorers["Ensemble"], torch.rand(2, 3, 32, 32)
    rewards = open_rewards(ensemble)
    assert isinstance(rewards, Rewards)
    assert list(rewards.parts) == ensemble.names
    torch.testing.assert_close(rewards(pixels, ["a", "b"])[0], ensemble.reward(pixels, ["a", "b"]))


def test_the_command_and_bulk_scoring_take_a_scorer_of_ones_own(mine, table):
    (table / "my_scorers.py").write_text(MODULE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "imagereward", "score-table", "table.jsonl", "--out", "out.jsonl"]
    command += ["--model", f"{mine}:make_scorer", "--device", "cpu", "--workers", "1"]
    result = subprocess.run(command, cwd=table, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    scored = [json.loads(line) for line in (table / "out.jsonl").read_text().splitlines()]
    scorer = RM.load(f"{mine}:make_scorer", "cpu")
    prompts, images = [row["prompt"] for row in scored], [table / row["image"] for row in scored]
    column = f"score:{scorer.name}"
    assert [row[column] for row in scored] == pytest.approx(scorer.score_pairs(prompts, images), abs=1e-4)


def test_a_coroutine_that_waits_is_no_blocking_one():
    async def waits():
        await asyncio.sleep(1)

    with pytest.raises((RuntimeError, ImageRewardError)):
        run(waits())
