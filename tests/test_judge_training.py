"""Training reward heads on vision-language models: losses by independent integrals, and learning."""

import json
import math
from typing import ClassVar

import numpy as np
import PIL.Image
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

import imagereward as RM
from imagereward.agreement.rankings import RankedPrompt
from imagereward.errors import InputError
from imagereward.models.vlm.asking.settings import HeadConfig
from imagereward.tuning import run_recipe
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.explain import config_of
from imagereward.tuning.judges.data import Pairs, pairs_of
from imagereward.tuning.judges.losses import bradley_terry, expected_bradley_terry, rao_kupper, thurstone
from imagereward.tuning.judges.objective import JudgeObjective, pair_losses

MEANS = torch.tensor([-2.0, 0.0, 0.7, 5.0], dtype=torch.float64)
VARIANCES = torch.tensor([0.3, 1.0, 4.0, 9.0], dtype=torch.float64)


def test_bradley_terry_is_the_log_of_the_odds():
    assert bradley_terry(torch.tensor([0.0, math.log(3)])).tolist() == pytest.approx(
        [math.log(2), math.log(4 / 3)]
    )


def test_the_uncertain_loss_is_the_integral_that_hpsv3_samples():
    found = expected_bradley_terry(MEANS, VARIANCES)

    def weighted(z, mean, sigma):
        return np.logaddexp(0, -z) * norm.pdf(z, mean, sigma)

    for mean, variance, value in zip(MEANS.tolist(), VARIANCES.tolist(), found.tolist()):
        sigma = math.sqrt(variance)
        integral, _ = quad(weighted, mean - 12 * sigma, mean + 12 * sigma, args=(mean, sigma))
        assert value == pytest.approx(integral, abs=1e-6)
    noise = torch.randn(len(MEANS), 200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampled = -torch.nn.functional.logsigmoid(MEANS[:, None] + VARIANCES.sqrt()[:, None] * noise).mean(1)
    torch.testing.assert_close(found, sampled, rtol=0.02, atol=0.01)
    certain = expected_bradley_terry(MEANS, torch.full_like(MEANS, 1e-12))
    torch.testing.assert_close(certain, bradley_terry(MEANS))


def test_thurstone_is_the_normal_distribution():
    expected = [-norm.logcdf(mean / math.sqrt(var)) for mean, var in zip(MEANS.tolist(), VARIANCES.tolist())]
    assert thurstone(MEANS, VARIANCES).tolist() == pytest.approx(expected)


def test_with_ties_the_three_outcomes_have_probability_one():
    no, yes = torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    first, second, tie = (
        (-rao_kupper(margins, tied, 0.5)).exp() for margins, tied in ((MEANS, no), (-MEANS, no), (MEANS, yes))
    )
    torch.testing.assert_close(first + second + tie, torch.ones_like(MEANS))
    assert tie.argmax() == 1  # a tie is likeliest for equal scores


def test_losses_take_the_heads_outputs():
    outputs = torch.tensor([[1.0, 0.0], [0.0, math.log(2.0)]])
    pairs = Pairs(torch.tensor([0]), torch.tensor([1]), torch.tensor([False]))
    one, five = torch.tensor([1.0]), torch.tensor([1.0 + 4.0])
    assert pair_losses(outputs, pairs, "bradley-terry").item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert pair_losses(outputs, pairs, "uncertain").item() == pytest.approx(
        expected_bradley_terry(one, five).item()
    )
    assert pair_losses(outputs, pairs, "thurstone").item() == pytest.approx(-norm.logcdf(1 / math.sqrt(5)))
    tied = pairs._replace(tied=torch.tensor([True]))
    assert pair_losses(outputs, tied, "ties", 0.5).item() == pytest.approx(
        rao_kupper(one, tied.tied, 0.5).item()
    )


def test_pairs_are_those_of_one_prompt_better_first():
    prompts = [RankedPrompt("a", "a", ("1", "2", "3"), (2, 1, 2)), RankedPrompt("b", "b", ("4", "5"), (1, 2))]
    pairs = pairs_of(prompts, ties=False)
    assert [pairs.better.tolist(), pairs.worse.tolist()] == [[1, 1, 3], [0, 2, 4]]
    tied = pairs_of(prompts, ties=True)
    assert [tied.better.tolist(), tied.worse.tolist()] == [[1, 0, 1, 3], [0, 2, 2, 4]]
    assert tied.tied.tolist() == [False, True, False, False]


class Fixed:
    """A learner whose scores of a prompt's images are given by the prompt's id."""

    scores: ClassVar = {"a": [0.3, -1.0, 2.0, 0.1], "b": [1.0, 0.0], "c": [-0.5, 0.4, 0.2]}

    def outputs(self, prompts):
        return torch.tensor([score for each in prompts for score in self.scores[each.id]])[:, None]


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_the_loss_of_an_update_is_the_mean_over_its_pairs(micro_batch):
    ranked = [
        RankedPrompt(name, name, tuple(map(str, scores)), tuple(range(1, len(scores) + 1)))
        for name, scores in Fixed.scores.items()
    ]
    objective = JudgeObjective(ranked, "bradley-terry", 0.5, seed=3)
    found = 0.0
    for rank in (0, 1):
        plan = UpdatePlan(0, 3, micro_batch, rank, 2)
        (batches,) = objective.minibatches(Fixed(), plan)
        found += sum(batch.share * objective.loss(Fixed(), batch)[0].item() for batch in batches)
    margins = [
        one - other
        for scores in Fixed.scores.values()
        for place, one in enumerate(scores)
        for other in scores[place + 1 :]
    ]
    assert len(margins) == 6 + 1 + 3
    assert found == pytest.approx(np.mean([math.log1p(math.exp(-margin)) for margin in margins]))


def train(reds, tiny_vlm, **changes):
    return run_recipe("judge/preference", overrides(reds, tiny_vlm(), **changes))


def overrides(data, model, **changes):
    """The recipe cut to a tiny model and to seconds."""
    values = {
        "data": data,
        "output": data / "out",
        "model": model,
        "train": "all",
        "lora": "null",
        "hidden": "[16]",
        "dropout": 0.0,
        "precision": "float32",
        "pixels": "null",
        "checkpointing": "false",
        "updates": 30,
        "batch_size": 4,
        "micro_batch": 4,
        "learning_rate": 3e-3,
        "warmup_updates": 3,
        "evaluate_every": 15,
        "device": "cpu",
        **changes,
    }
    return [f"{key}={value}" for key, value in values.items()]


def validations(history):
    return [entry for entry in history if "valid_loss" in entry]


def test_a_judge_learns_what_is_better_and_is_loaded(reds, tiny_vlm):
    trained = train(reds, tiny_vlm)
    history = json.loads((reds / "out/history.json").read_text())
    assert history[-1]["valid_loss"] < 0.6 * history[0]["valid_loss"]
    assert history[-1]["accuracy"] > 0.75 > history[0]["accuracy"]
    best = min(validations(history), key=lambda entry: entry["valid_loss"])
    assert f"{best['accuracy']:.1%} of pairs" in (reds / "out/README.md").read_text()
    images = [PIL.Image.new("RGB", (16, 16), (level, 100, 100)) for level in (10, 120, 250)]
    loaded = RM.load(reds / "out", "cpu")
    assert loaded.rank("red", images).order == [2, 1, 0]
    assert loaded.score("red", images) == pytest.approx(trained.score("red", images), abs=1e-5)
    pixels = torch.full((1, 3, 16, 16), 0.5, requires_grad=True)
    loaded.reward(pixels, "red").sum().backward()
    assert pixels.grad[0, 0].sum() > 0  # more red is better
    with pytest.raises(InputError, match="holds"):
        train(reds, tiny_vlm, learning_rate=1e-3)  # another run in the same directory


@pytest.mark.parametrize("loss", ["bradley-terry", "ties"])
def test_low_rank_updates_are_merged_into_what_is_saved(reds, tiny_vlm, loss):
    changes = {"train": "head", "lora": "{ rank = 2 }", "loss": loss, "updates": 4, "evaluate_every": 4}
    trained = train(reds, tiny_vlm, checkpointing="true", **changes)
    fresh = RM.load(
        f"vqa:{tiny_vlm()}", "cpu", readout="head", template="preference", head=HeadConfig((16,), 1)
    )
    before, after = fresh.backbone.state_dict(), trained.backbone.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("language_model" in name and "_proj" in name for name in changed)
    image = PIL.Image.new("RGB", (16, 16), (200, 10, 10))
    assert RM.load(reds / "out", "cpu").score("red", image) == pytest.approx(
        trained.score("red", image), abs=1e-5
    )


def test_low_rank_updates_of_the_image_encoder_reach_it(reds, tiny_vlm):
    changes = {"train": "head", "lora": "{ rank = 2, vision = true }", "updates": 2, "evaluate_every": 2}
    trained = train(reds, tiny_vlm, **changes)
    fresh = RM.load(
        f"vqa:{tiny_vlm()}", "cpu", readout="head", template="preference", head=HeadConfig((16,), 1)
    )
    before, after = fresh.backbone.state_dict(), trained.backbone.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("visual" in name or "vision" in name for name in changed)
    assert any("language_model" in name for name in changed)


def test_what_cannot_be_learned_from_is_refused(reds, tiny_vlm):
    for change in ({"device": "cuda:1"}, {"precision": "float16"}, {"micro_batches": 2}):
        (key,) = change
        with pytest.raises(InputError, match=key):
            train(reds, tiny_vlm, **change)
    rows = json.loads((reds / "train.json").read_text())
    (reds / "train.json").write_text(json.dumps([{**rows[0], "generations": ["gone.png"] * 3}]))
    with pytest.raises(InputError, match=r"of \d+ images|may be \(max_bad_share"):
        train(reds, tiny_vlm)
    assert config_of("judge", "x").__name__ == "JudgeTrainingConfig"
