"""Training reward models: losses, freezing, configs, data, whole runs, and runs that are interrupted."""

import itertools
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIGS, TWO_PROCESSES, pictures, small_scorer
from forked import run_forked
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import imagereward as RM
from imagereward import shapes
from imagereward.agreement.metrics import pair_accuracy, pairs_of
from imagereward.agreement.rankings import read_rankings
from imagereward.checkpoints.registry import REGISTRY
from imagereward.cli import app, main
from imagereward.config import ScorerConfig
from imagereward.errors import CheckpointError, DeadHeadError, InputError, NonFiniteScoreError
from imagereward.images.preprocess import Preprocess
from imagereward.models import model_class
from imagereward.models.imagereward import RewardHead
from imagereward.models.tokenizer import SPECIAL_TOKENS
from imagereward.tuning import run_recipe
from imagereward.tuning.config import build
from imagereward.tuning.data.image_pairs import ShapesPairs
from imagereward.tuning.recipe import read_recipe, recipe_names
from imagereward.tuning.reward_model import image_text
from imagereward.tuning.reward_model.data import RankedImages, RankingsWithPairs, collate_rankings
from imagereward.tuning.reward_model.image_text import ImageText, contrastive_loss, masked_words, negatives
from imagereward.tuning.reward_model.init import (
    freeze,
    from_nothing,
    frozen_names,
    init_head,
    set_checkpointing,
    start_from,
)
from imagereward.tuning.reward_model.preference import NO_IMAGE, Preference, preference_loss, ranked_pairs
from imagereward.tuning.reward_model.train import RewardModelConfig, train_reward_model
from imagereward.tuning.trainer.run_directory import check_run_directory, checkpoints

ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / "train" / "reward_model.py")
GOLDEN = json.loads((ROOT / "tests/golden/shapes.json").read_text())["ImageReward"]
SIZE = 32
ARCHITECTURE = {
    "projection": 8,
    "vocabulary": "shapes",
    "max_length": 24,
    "vision": {"img_size": SIZE, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "text": {"width": 16, "depth": 2, "heads": 2, "mlp_width": 32, "max_positions": 24},
}
WARMUP = {
    "pairs": 64,
    "epochs": 1,
    "batch_size": 8,
    "micro_batch": 4,
    "learning_rate": 1e-3,
    "rehearsal": 1,
}
EPOCHS, UPDATES, VALIDATIONS = 3, 8, 4  # 40 prompts in batches of 5
RUN = {
    "objective": "preference",
    "start": "nothing",
    "architecture": ARCHITECTURE,
    "checkpointing": "none",
    "fix_rate": 0.0,
    "epochs": EPOCHS,
    "batch_size": 5,
    "micro_batch": 5,
    "learning_rate": 1e-2,
    "device": "cpu",
    "seed": 3,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As in the processes that are started here: sums of floats depend on who adds them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 prompts to train on and 5 to validate, every other one with two images, the rest with three."""
    path = tmp_path_factory.mktemp("shapes") / "data"
    assert shapes.write(path, 50, seed=2, images=3, size=SIZE, progress=False)["valid"] == 5
    for split in ("train", "valid"):
        records = json.loads((path / f"{split}.json").read_text())
        for record in records[::2]:
            if len(set(record["ranking"][:2])) == 2:
                for key in ("generations", "ranking", "truth"):
                    record[key] = record[key][:2]
        assert {len(record["ranking"]) for record in records} == {2, 3}
        (path / f"{split}.json").write_text(json.dumps(records))
    return path


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A whole training from nothing, warm-up first, that nothing interrupted: (directory, scorer)."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    return output, train(data, output, warmup=WARMUP)


def train(data, output, **changes):
    """A training in this process, of the small recipe with these changes."""
    values = {**RUN, "data": str(data), "output": str(output), **changes}
    if values["start"] != "nothing":
        del values["architecture"]
    values["trainer"] = {"disable_tqdm": True, **values.get("trainer", {})}
    return train_reward_model(build(RewardModelConfig, values))


def test_a_token_of_the_hub_is_not_written_to_files(data, tmp_path):
    with pytest.raises(InputError, match="the environment variable HF_TOKEN") as caught:
        train(data, tmp_path / "out", trainer={"hub_token": "s3cret"})
    assert "s3cret" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def recipe(path, data, output, **changes):
    """The small recipe as a file."""
    lines, tables = [], []
    for key, value in {**RUN, "data": str(data), "output": str(output), **changes}.items():
        if isinstance(value, dict):
            tables += [f"[{key}]", *(f"{inner} = {toml(each)}" for inner, each in value.items())]
        else:
            lines.append(f"{key} = {toml(value)}")
    path.write_text("\n".join([*lines, *tables]))
    return str(path)


def toml(value) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


def history(output) -> list[dict]:
    """The validations in order, with the step each was made at."""
    entries = json.loads((Path(output) / "history.json").read_text())
    return [entry for entry in entries if "eval_pair_loss" in entry]


def weights(directory) -> bytes:
    return (Path(directory) / "model.safetensors").read_bytes()


def scores_and_rankings(scorer, path):
    """Every image of a data set scored by itself, and the rankings: lists by prompt."""
    records = json.loads(path.read_text())
    scores = [
        scorer.score(record["prompt"], [path.parent / name for name in record["generations"]])
        for record in records
    ]
    return scores, [record["ranking"] for record in records]


def loss_by_loops(scores, ranks) -> float:
    """The loss as a reader of the paper would write it."""
    losses = [
        math.log1p(math.exp(-(row[better] - row[worse])))
        for row, ranking in zip(scores, ranks)
        for better, worse in itertools.permutations(range(len(row)), 2)
        if NO_IMAGE not in (ranking[better], ranking[worse]) and ranking[better] < ranking[worse]
    ]
    return sum(losses) / len(losses)


# The loss.


def test_the_loss_of_one_pair_is_minus_log_sigmoid_of_the_margin():
    # sigmoid(2) = 0.8807970779778823
    loss = preference_loss(torch.tensor([[3.0, 1.0]], dtype=torch.float64), torch.tensor([[1, 2]]))
    assert loss.item() == pytest.approx(0.1269280110429726, abs=1e-12)
    loss = preference_loss(torch.tensor([[3.0, 1.0]], dtype=torch.float64), torch.tensor([[2, 1]]))
    assert loss.item() == pytest.approx(2.1269280110429727, abs=1e-12)


def test_the_loss_of_three_images_averages_their_three_pairs():
    # Margins 1, 2 and 1: -log sigmoid is 0.3132616875, 0.1269280110 and 0.3132616875.
    loss = preference_loss(torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64), torch.tensor([[1, 2, 3]]))
    assert loss.item() == pytest.approx((0.31326168751822286 * 2 + 0.1269280110429726) / 3, abs=1e-12)


def test_tied_images_form_no_pair():
    # Only the pairs with the last image count; both have margin 1.
    loss = preference_loss(torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64), torch.tensor([[1, 1, 2]]))
    assert loss.item() == pytest.approx(0.31326168751822286, abs=1e-12)


def test_the_loss_equals_plain_loops_over_prompts_with_ties_and_missing_images():
    rng = np.random.default_rng(0)
    for _ in range(20):
        ranks = rng.integers(1, 4, (5, 4))
        ranks[rng.random((5, 4)) < 0.3] = NO_IMAGE
        scores = rng.normal(0, 3, (5, 4))
        loss = preference_loss(torch.tensor(scores), torch.tensor(ranks))
        assert loss.item() == pytest.approx(loss_by_loops(scores, ranks), abs=1e-12)


def test_equal_scores_cost_log_2_per_pair():
    ranks = torch.tensor([[1, 2, 2, NO_IMAGE], [3, 1, 2, 4]])
    assert preference_loss(torch.full((2, 4), 7.5), ranks).item() == pytest.approx(math.log(2), abs=1e-7)


def test_very_large_margins_stay_finite():
    scores = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = preference_loss(scores, torch.tensor([[2, 1]]))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert scores.grad.tolist() == [[1.0, -1.0]]


def test_a_batch_without_a_pair_costs_nothing_and_moves_nothing():
    scores = torch.randn(2, 3, requires_grad=True)
    loss = preference_loss(scores, torch.tensor([[1, 1, 1], [2, NO_IMAGE, NO_IMAGE]]))
    loss.backward()
    assert loss.item() == 0
    assert not scores.grad.any()


def test_descent_raises_the_better_image_and_lowers_the_worse():
    scores = torch.zeros(1, 4, requires_grad=True)
    preference_loss(scores, torch.tensor([[2, 1, 3, NO_IMAGE]])).backward()
    middle, best, worst, nothing = scores.grad[0].tolist()
    # At equality each pair pulls with 1/2; three pairs are averaged.
    assert (best, middle, worst, nothing) == pytest.approx((-1 / 3, 0, 1 / 3, 0))


def test_ranked_pairs_are_all_ordered_pairs_of_unequal_rank():
    rng = np.random.default_rng(1)
    ranks = rng.integers(1, 4, (6, 5))
    ranks[rng.random((6, 5)) < 0.3] = NO_IMAGE
    expected = {
        (prompt, i, j)
        for prompt, row in enumerate(ranks.tolist())
        for i, j in itertools.permutations(range(5), 2)
        if row[i] != NO_IMAGE and row[j] != NO_IMAGE and row[i] < row[j]
    }
    found = [tuple(row) for row in ranked_pairs(torch.tensor(ranks)).tolist()]
    assert len(found) == len(set(found))
    assert set(found) == expected


# The objective: images, prompts and places.


def batch_of(scorer, prompts):
    """[(prompt, pictures, ranking)] as the trainer's batch."""
    return collate_rankings(
        [
            {
                "prompt": prompt,
                "pixels": torch.stack([scorer.preprocess.pixels(picture) for picture in images]),
                "ranking": tuple(ranking),
            }
            for prompt, images, ranking in prompts
        ]
    )


@pytest.fixture
def asked():
    """Three prompts with two, four and three pictures."""
    made = pictures(9, seed=4)
    return [
        ("a red bicycle", made[:2], [2, 1]),
        ("two cats asleep on a green sofa, oil on canvas", made[2:6], [1, 3, 2, 3]),
        ("", made[6:], [3, 2, 1]),
    ]


def test_every_image_of_a_batch_enters_the_vision_tower_once(asked):
    scorer, seen = small_scorer("ImageReward"), []
    scorer.blip.visual_encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    Preference(scorer)(**batch_of(scorer, asked))
    assert sum(seen) == 9


def test_scores_land_where_their_ranks_are(asked):
    scorer = small_scorer("ImageReward")
    batch = batch_of(scorer, asked)
    assert batch["ranks"].tolist() == [[2, 1, NO_IMAGE, NO_IMAGE], [1, 3, 2, 3], [3, 2, 1, NO_IMAGE]]
    scores = Preference(scorer)(**batch)["scores"]
    for row, (prompt, images, _) in zip(scores.tolist(), asked):
        assert row[: len(images)] == pytest.approx(scorer.score(prompt, images), abs=1e-5)


def test_prompts_of_unequal_size_in_one_batch_equal_the_same_prompts_one_at_a_time(asked):
    objective = Preference(small_scorer("ImageReward"))
    together = objective(**batch_of(objective.scorer, asked))
    alone = [objective(**batch_of(objective.scorer, [each])) for each in asked]
    for row, each in zip(together["scores"], alone):
        width = each["scores"].shape[1]
        torch.testing.assert_close(row[:width], each["scores"][0], atol=1e-5, rtol=0)
    pairs = [len(pairs_of(ranking)) for _, _, ranking in asked]
    expected = sum(float(each["loss"]) * count for each, count in zip(alone, pairs)) / sum(pairs)
    assert float(together["loss"]) == pytest.approx(expected, abs=1e-6)


def test_gradients_reach_the_head_and_both_encoders_but_not_the_unused_projections(asked):
    scorer = small_scorer("ImageReward").requires_grad_(True)
    Preference(scorer)(**batch_of(scorer, asked))["loss"].backward()
    without = {name for name, value in scorer.named_parameters() if value.grad is None}
    projections = {"vision_proj.weight", "vision_proj.bias", "text_proj.weight", "text_proj.bias"}
    assert without == {f"blip.{name}" for name in projections}
    # A constant added to all scores changes no margin.
    assert float(scorer.mlp.layers[-1].bias.grad.abs()) < 1e-6
    moved = [name for name, value in scorer.named_parameters() if value.grad is not None and value.grad.any()]
    assert any("visual_encoder" in name for name in moved)
    assert any("text_encoder" in name for name in moved)


def test_what_is_rehearsed_adds_its_own_loss_and_keeps_its_own_weights(asked):
    scorer = small_scorer("ImageReward")
    batch = batch_of(scorer, asked)
    objective = ImageText(scorer).requires_grad_(False)
    scorer.requires_grad_(True)
    pairs = {"pixels": batch["pixels"][:2], "prompts": ["a red circle", "two blue stars"]}
    torch.manual_seed(0)
    both = Preference(scorer, objective)(**batch, rehearsed=pairs)
    torch.manual_seed(0)
    alone = objective(**pairs)["loss"]
    expected = Preference(scorer)(**batch)["loss"] + alone
    torch.testing.assert_close(both["loss"], expected)
    both["loss"].backward()
    assert objective.match.weight.grad is None
    assert set(Preference(scorer, objective).state_dict()) == set(scorer.state_dict())


def test_every_ranked_prompt_brings_its_pairs_along_in_turn(data):
    preprocess = Preprocess(SIZE)
    rankings = RankedImages(data / "train.json", preprocess)
    pairs = ShapesPairs(7, 0, preprocess)
    items = RankingsWithPairs(rankings, pairs, 3)
    batch = collate_rankings([items[1], items[2]])
    assert batch["rehearsed"]["prompts"] == [pairs[i]["prompt"] for i in (3, 4, 5, 6, 0, 1)]
    plain = collate_rankings([rankings[1], rankings[2]])
    assert torch.equal(batch["ranks"], plain["ranks"])
    assert torch.equal(batch["pixels"], plain["pixels"])


def test_the_objective_saves_and_loads_under_the_scorers_own_names():
    scorer, other = small_scorer("ImageReward"), small_scorer("ImageReward", seed=1)
    state = Preference(scorer).state_dict()
    assert list(state) == list(scorer.state_dict())
    Preference(other).load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


# Which weights learn.


@pytest.fixture(scope="module")
def full_size():
    """ImageReward at its released size, without memory behind it."""
    with torch.device("meta"):
        return model_class("ImageReward")(ScorerConfig("ImageReward"))


def split_by(scorer, rate):
    """(frozen, learning) parameter names of the text encoder and of the vision tower, in order."""
    freeze(scorer, rate)
    parts = []
    for encoder in ("text_encoder", "visual_encoder"):
        parameters = list(scorer.blip.get_submodule(encoder).named_parameters())
        frozen = [name for name, value in parameters if not value.requires_grad]
        assert frozen == [name for name, _ in parameters[: len(frozen)]]  # a beginning, without gaps
        parts.append((frozen, [name for name, value in parameters if value.requires_grad]))
    return parts


def test_parameters_stand_in_the_order_of_the_released_checkpoint(full_size):
    assert [name for name, _ in full_size.named_parameters()] == list(GOLDEN)
    text = [name for name, _ in full_size.blip.text_encoder.named_parameters()]
    assert text[:4] == [
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
        "embeddings.LayerNorm.weight",
        "embeddings.LayerNorm.bias",
    ]
    vision = [name for name, _ in full_size.blip.visual_encoder.named_parameters()]
    assert vision[:4] == ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    assert vision[-2:] == ["norm.weight", "norm.bias"]


@pytest.mark.parametrize(
    ("rate", "layer", "block"), [(0.7, 8, 16), (0.5, 6, 12), (0.1, 1, 2), (0.01, 0, 0), (0.95, 11, 22)]
)
def test_a_rate_freezes_up_to_and_including_the_first_tensor_of_that_layer(full_size, rate, layer, block):
    (frozen_text, learning_text), (frozen_vision, learning_vision) = split_by(full_size, rate)
    assert frozen_text[-1] == f"encoder.layer.{layer}.attention.self.query.weight"
    assert learning_text[0] == f"encoder.layer.{layer}.attention.self.query.bias"
    assert frozen_vision[-1] == f"blocks.{block}.norm1.weight"
    assert learning_vision[0] == f"blocks.{block}.norm1.bias"
    # By the released checkpoint's own list: a layer of text has 26 tensors and a block of vision 12,
    # behind 4 tensors of embeddings each.
    assert len(frozen_text) == 4 + 26 * layer + 1
    assert len(frozen_vision) == 4 + 12 * block + 1


def test_the_frozen_list_is_what_the_published_rule_gives_on_the_released_names(full_size):
    expected = [name for name in GOLDEN if "_proj" in name]
    for prefix, last in (("blip.text_encoder.", "layer.8"), ("blip.visual_encoder.", "blocks.16")):
        for name in (name for name in GOLDEN if name.startswith(prefix)):
            expected.append(name)
            if last in name:
                break
    freeze(full_size, 0.7)
    frozen = {name for name, value in full_size.named_parameters() if not value.requires_grad}
    assert frozen == set(expected)
    assert {f"blip.{name}" for name in frozen_names(full_size.blip, 0.7)} == frozen


def test_a_rate_of_0_freezes_the_projections_alone(full_size):
    freeze(full_size, 0.0)
    frozen = [name for name, value in full_size.named_parameters() if not value.requires_grad]
    assert frozen == [
        "blip.vision_proj.weight",
        "blip.vision_proj.bias",
        "blip.text_proj.weight",
        "blip.text_proj.bias",
    ]


def test_a_rate_of_1_leaves_the_head_alone_to_learn(full_size):
    freeze(full_size, 1.0)
    learning = [name for name, value in full_size.named_parameters() if value.requires_grad]
    assert learning == [name for name in GOLDEN if name.startswith("mlp.")]


def test_freezing_anew_lets_go_of_what_was_frozen_before(full_size):
    freeze(full_size, 1.0)
    (frozen_text, _), (frozen_vision, _) = split_by(full_size, 0.0)
    assert not frozen_text
    assert not frozen_vision


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(InputError, match=r"fix_rate=.*expected a share in \[0, 1\]"):
        frozen_names(small_scorer("ImageReward").blip, rate)


def test_frozen_weights_get_no_gradient(asked):
    scorer = small_scorer("ImageReward")
    freeze(scorer, 0.5)
    Preference(scorer)(**batch_of(scorer, asked))["loss"].backward()
    for name, value in scorer.named_parameters():
        assert (value.grad is None) == (not value.requires_grad), name


def test_training_leaves_frozen_weights_bit_for_bit_and_moves_all_others(data, tmp_path):
    start = start_directory("ImageReward", tmp_path)
    train(data, tmp_path / "out", start=str(start), fix_rate=0.5, updates=2)
    before = RM.load(start, "cpu").state_dict()
    after = RM.load(tmp_path / "out", "cpu")
    frozen = {f"blip.{name}" for name in frozen_names(after.blip, 0.5)}
    assert 0 < len(frozen) < len(before)
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, before[name])}
    # Softmax ignores a shift of all keys, and a loss of differences a shift of both rewards: the gradient of
    # these biases is zero up to rounding, and whether rounding moves them depends on the processor.
    shifts = (".key.bias", "mlp.layers.6.bias", "mlp.layers.7.bias")
    trained = set(before) - frozen
    must_move = {name for name in trained if not name.endswith(shifts)}
    assert len(trained - must_move) == 4
    assert must_move <= changed <= trained


# Where a training starts.


def start_directory(kind, tmp_path) -> Path:
    """A small scorer on disk that reads 32 pixels, as `start=` takes it."""
    return small_scorer(kind).save_pretrained(tmp_path / kind)


def test_the_published_head_has_a_spread_of_1_over_769_in_every_layer_and_no_bias():
    head = RewardHead(768)
    torch.manual_seed(0)
    init_head(head, "published")
    linear = [layer for layer in head.layers if isinstance(layer, torch.nn.Linear)]
    assert [layer.in_features for layer in linear] == [768, 1024, 128, 64, 16]
    for layer in linear:
        # The sample's standard deviation is off by 1/sqrt(2 n), here at most four times that.
        slack = 4 / math.sqrt(2 * layer.weight.numel())
        assert float(layer.weight.detach().square().mean().sqrt()) * 769 == pytest.approx(1, abs=slack)
        assert not layer.bias.any()


def test_an_ordinary_head_keeps_the_spread_of_what_goes_in():
    head = RewardHead(32)
    torch.manual_seed(0)
    init_head(head, "ordinary")
    spread = float(head.eval()(torch.randn(5000, 32)).detach().std())
    assert 0.3 < spread < 3


def test_a_start_from_blip_has_blips_weights_under_a_fresh_head(tmp_path):
    blip = small_scorer("BLIP").state_dict()
    scorer = start_from(str(start_directory("BLIP", tmp_path)), "published", "cpu", seed=5)
    assert scorer.config.kind == "ImageReward"
    assert (scorer.mean, scorer.std) == (0, 1)
    state = scorer.state_dict()
    assert all(torch.equal(state[name], value) for name, value in blip.items())
    head = state["mlp.layers.0.weight"]
    assert float(head.std()) * (head.shape[1] + 1) == pytest.approx(1, abs=0.05)
    again = start_from(str(tmp_path / "BLIP"), "published", "cpu", seed=5).state_dict()
    assert all(torch.equal(state[name], value) for name, value in again.items())
    other = start_from(str(tmp_path / "BLIP"), "published", "cpu", seed=6).state_dict()
    assert not torch.equal(head, other["mlp.layers.0.weight"])


def test_a_start_from_blips_released_file_takes_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setitem(REGISTRY, "BLIP", replace(REGISTRY["BLIP"], config=CONFIGS["BLIP"]))
    state = small_scorer("BLIP").state_dict()
    bare = {name.removeprefix("blip."): value for name, value in state.items()}
    torch.save({"model": {**bare, "itm_head.weight": torch.zeros(2, 2)}}, tmp_path / "large.pth")
    scorer = start_from(str(tmp_path / "large.pth"), "ordinary", "cpu", seed=0)
    assert all(torch.equal(scorer.state_dict()[name], value) for name, value in state.items())


def test_a_start_from_an_imagereward_goes_on_from_its_raw_scores(tmp_path):
    before = small_scorer("ImageReward")  # mean 0.17, std 1.03
    scorer = start_from(str(start_directory("ImageReward", tmp_path)), "ordinary", "cpu", seed=0)
    raw = [before.mean + before.std * score for score in before.score("a red bicycle", pictures(3))]
    assert scorer.score("a red bicycle", pictures(3)) == pytest.approx(raw, abs=1e-6)


def test_a_start_from_clip_is_refused(tmp_path):
    with pytest.raises(InputError, match="is a CLIP; expected an ImageReward or a BLIP"):
        start_from(str(start_directory("CLIP", tmp_path)), "published", "cpu", seed=0)


def test_a_start_whose_weights_do_not_fit_its_config_is_a_checkpoint_error(data, tmp_path):
    path = start_directory("ImageReward", tmp_path)
    described = json.loads((path / "config.json").read_text())
    described["scorer"]["architecture"]["text"]["width"] = 64
    (path / "config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=r"does not fit a scorer[^$]*of another shape"):
        train(data, tmp_path / "out", start=str(path))
    with pytest.raises(CheckpointError, match="no known scorer"):
        train(data, tmp_path / "out", start="ImageReward-v9")
    assert not (tmp_path / "out").exists()


# Recomputing activations.


@pytest.fixture
def differentiated(asked):
    """(loss, gradients, forward passes of every layer) of one step under a kind of checkpointing."""

    def step(how, rate):
        scorer = small_scorer("ImageReward")  # its text encoder and its head drop out
        freeze(scorer, rate)
        set_checkpointing(scorer, how)
        passes = dict.fromkeys(["blocks.0", "blocks.1", "layer.0", "layer.1"], 0)
        towers = (scorer.blip.visual_encoder.blocks, scorer.blip.text_encoder.layers)
        for place, layer in zip(passes, itertools.chain(*towers)):
            inner = layer.attn if hasattr(layer, "attn") else layer.attention

            def count(*_, place=place):
                passes[place] += 1

            inner.register_forward_pre_hook(count)
        torch.manual_seed(0)
        loss = Preference(scorer.train())(**batch_of(scorer, asked))["loss"]
        loss.backward()
        gradients = {name: value.grad for name, value in scorer.named_parameters()}
        return float(loss.detach()), gradients, passes, list(scorer.state_dict())

    return step


# Said of frozen layers, whose gradients are None indeed.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("how", ["torch", "fairscale", "fairscale-offload"])
def test_checkpointing_recomputes_and_changes_neither_loss_nor_gradients_nor_names(differentiated, how, rate):
    loss, gradients, passes, names = differentiated("none", rate)
    assert set(passes.values()) == {1}
    again, found, passes, found_names = differentiated(how, rate)
    assert again == loss
    assert found_names == names
    assert {name for name, value in found.items() if value is None} == {
        name for name, value in gradients.items() if value is None
    }
    for name, value in gradients.items():
        if value is not None:
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5, msg=name)
    assert passes["blocks.1"] == passes["layer.1"] == 2
    if rate == 0:
        assert set(passes.values()) == {2}


# Images and texts.


def same_as(numbers, others=None) -> torch.Tensor:
    return torch.tensor(numbers)[:, None] == torch.tensor(numbers if others is None else others)


def test_contrast_of_distinct_prompts_is_open_clips_loss():
    from open_clip.loss import ClipLoss

    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(7, 16), dim=-1) for _ in range(2))
    expected = ClipLoss()(images, texts, torch.tensor(12.0))
    found = contrastive_loss(12.0 * images @ texts.T, torch.eye(7).bool())
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("numbers", [range(6), [0, 0, 1, 2, 2, 2], [0] * 6], ids=str)
def test_contrast_without_any_similarity_is_log_of_the_batch(numbers):
    assert float(contrastive_loss(torch.zeros(6, 6), same_as(list(numbers)))) == pytest.approx(math.log(6))


def test_two_images_of_one_prompt_share_the_target():
    # Rows 0 and 1 say the same. By hand, with logits a for same and 0 for other: a row of the two costs
    # log(2 e^a + 1) - a and the last one log(e^a + 2) - a, alike in both directions.
    a = 1.5
    same = same_as([0, 0, 1])
    twice, once = math.log(2 * math.exp(a) + 1) - a, math.log(math.exp(a) + 2) - a
    assert float(contrastive_loss(a * same.float(), same)) == pytest.approx((2 * twice + once) / 3)


def test_prompts_of_no_image_must_not_be_chosen_and_choose_nothing():
    torch.manual_seed(1)
    similarity, numbers, others = torch.randn(3, 5).double(), [0, 1, 1], [0, 1, 1, 7, 0]

    def cross_entropy(logits, targets):
        total = sum(math.exp(value) for value in logits)
        return -sum(math.log(math.exp(logits[j]) / total) for j in targets) / len(targets)

    rows = similarity.tolist()
    by_image = [
        cross_entropy(rows[i], [j for j, other in enumerate(others) if other == numbers[i]]) for i in range(3)
    ]
    by_prompt = [
        cross_entropy(
            [row[j] for row in rows], [i for i, number in enumerate(numbers) if number == others[j]]
        )
        for j in range(3)
    ]
    expected = (sum(by_image) / 3 + sum(by_prompt) / 3) / 2
    assert float(contrastive_loss(similarity, same_as(numbers, others))) == pytest.approx(expected)


def test_a_negative_never_says_the_same():
    torch.manual_seed(0)
    same = same_as([0, 1, 0, 2, 1, 0])
    for _ in range(200):
        chosen = negatives(20 * same.float() + torch.randn(6, 6), same)
        assert not same[torch.arange(6), chosen].any()


def test_negatives_are_half_by_similarity_and_half_at_random():
    torch.manual_seed(0)
    similarity = torch.tensor([[9.0, math.log(2), 0.0, 0.0]]).repeat(20000, 1)
    same = torch.tensor([[True, False, False, False]]).repeat(20000, 1)
    counts = negatives(similarity[:, :4], same).bincount(minlength=4) / 20000
    shares = torch.tensor([0.0, *(value / (math.exp(9) + 4) for value in (2.0, 1.0, 1.0))])
    expected = (shares + 1 / 20000) / 2
    expected[0] = 0
    torch.testing.assert_close(counts, expected / expected.sum(), atol=0.015, rtol=0)


def test_a_batch_of_one_prompt_has_no_negative_and_takes_one_of_its_own():
    assert negatives(torch.zeros(3, 3), torch.ones(3, 3).bool()).shape == (3,)


def painted() -> tuple[torch.Tensor, list[str]]:
    """Eight plain colours and their names."""
    colours = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"]
    images = [torch.from_numpy(np.array(Image.new("RGB", (SIZE, SIZE), name))) for name in colours]
    return torch.stack(images).permute(0, 3, 1, 2), [f"a {name} square" for name in colours]


def test_masking_takes_its_share_of_the_words_and_no_special_token():
    torch.manual_seed(0)
    ids = torch.tensor([[2, 7, 8, 9, 3, 0, 0]]).repeat(10000, 1)
    hidden, chosen = masked_words(ids, special=(0, 2, 3), mask_id=4, share=0.3)
    assert torch.equal(hidden, torch.where(chosen, 4, ids))
    shares = chosen.double().mean(0)
    assert not shares[[0, 4, 5, 6]].any()
    torch.testing.assert_close(shares[1:4], torch.full((3,), 0.3).double(), atol=0.02, rtol=0)


def test_how_texts_are_parted_by_length_changes_no_loss(monkeypatch):
    scorer = small_scorer("ImageReward").requires_grad_(True)
    objective = ImageText(scorer).eval()
    texts = [("a " * (1 + 3 * i % 7) + "red ring").strip() for i in range(7)]
    pixels = torch.randint(0, 256, (7, 3, SIZE, SIZE), dtype=torch.uint8)
    wrong = [[f"{text} and a blue star", "a cross"] for text in texts]

    def losses(part: int) -> dict:
        monkeypatch.setattr(image_text, "PART", part)
        torch.manual_seed(0)
        return {name: float(value.detach()) for name, value in objective(pixels, texts, wrong).items()}

    assert losses(1) == pytest.approx(losses(100), rel=1e-5)


def test_contrast_matching_and_masked_words_learn_which_colour_is_which():
    pixels, prompts = painted()
    words = [*SPECIAL_TOKENS, *shapes.vocabulary()]
    text = {**ARCHITECTURE["text"], "vocab_size": len(words) + 2, "dropout": 0.0}
    architecture = {"vision": ARCHITECTURE["vision"], "text": text, "projection": 8, "vocabulary": words}
    config = ScorerConfig("ImageReward", architecture, Preprocess(SIZE), ARCHITECTURE["max_length"])
    torch.manual_seed(0)
    objective = ImageText(from_nothing(config, seed=0).requires_grad_(True)).train()
    optimizer = torch.optim.Adam(objective.parameters(), 5e-3)
    losses = []
    for _ in range(130):
        parts = objective(pixels, prompts, [[prompt] for prompt in prompts[1:] + prompts[:1]])
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        losses.append({name: float(value.detach()) for name, value in parts.items()})
    total = losses[0].pop("loss")
    assert sorted(losses[0]) == ["contrast", "match", "words"]
    assert total == pytest.approx(sum(losses[0].values()), abs=1e-5)
    # One of three questions is answered by yes: not looking costs the entropy of 1/3, which is 0.637.
    assert losses[-1]["match"] < 0.3
    # A text that is wrong for one image is right for another, and there are two of it: log(2)/2 is the least.
    assert math.log(2) / 2 < losses[-1]["contrast"] < 0.6
    # A third of the masked words are one of eight colours: not looking costs log(8)/3, which is 0.693.
    assert sum(parts["words"] for parts in losses[-20:]) / 20 < 0.4


# Configs and recipes.


def config_error(**changes) -> str:
    values = {**RUN, "data": "d", "output": "o", **changes}
    with pytest.raises(InputError) as error:
        build(RewardModelConfig, {key: value for key, value in values.items() if value is not None}, "mine")
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lerning_rate": 1e-3}, "lerning_rate is no key; did you mean 'learning_rate'?"),
        ({"fixrate": 0.5}, "fixrate is no key; did you mean 'fix_rate'?"),
        ({"architecture": {**ARCHITECTURE, "vocab": "bert"}}, "architecture.vocab is no key; did you mean"),
        ({"warmup": {"paris": 3}}, "warmup.paris is no key; did you mean 'pairs'?"),
        ({"batch_size": "64"}, "batch_size='64': Input should be a valid integer"),
        ({"batch_size": 0}, "batch_size=0: "),
        ({"updates": 0}, "updates=0: expected at least 1, or -1"),
        ({"batch_size": 2.5}, "batch_size=2.5: "),
        ({"seed": True}, "seed=True: "),
        ({"calibrate": 1}, "calibrate=1: "),
        ({"learning_rate": math.nan}, "learning_rate=nan: "),
        ({"learning_rate": "fast"}, "learning_rate='fast': "),
        ({"warmup": {"epochs": "2"}}, "warmup.epochs='2': "),
        ({"warmup": 5}, "warmup=5: "),
        ({"head": "small"}, "head='small': Input should be 'published' or 'ordinary'"),
        ({"architecture": {**ARCHITECTURE, "mean": [0.5, 0.5]}}, "architecture.mean"),
        ({"fix_rate": 1.5}, "fix_rate=1.5: "),
        ({"data": None}, "data is missing"),
        ({"architecture": None}, 'start="nothing" and an [architecture] table belong together'),
        ({"start": "BLIP"}, 'start="nothing" and an [architecture] table belong together'),
        ({"checkpointing": "fairscale", "precision": "bfloat16"}, 'take checkpointing="torch"'),
        (
            {"trainer": {"ddp_timeout": 60}},
            "trainer={'ddp_timeout': 60}: ddp_timeout: the processes are joined",
        ),
        ({"sharding": "full", "warmup": WARMUP}, 'sharding="full" does not go with a [warmup] table'),
        (
            {"sharding": "full", "precision": "float16"},
            'sharding="full" does not go with precision="float16"',
        ),
        (
            {"sharding": "full", "trainer": {"fsdp": True}},
            "does not go with trainer.fsdp or trainer.deepspeed",
        ),
        ({"checkpointing": "fairscale", "warmup": WARMUP}, "warmup.rehearsal=1 do not go together"),
    ],
    ids=str,
)
def test_a_bad_config_is_refused_naming_what_is_wrong(changes, message):
    error = config_error(**changes)
    assert error.startswith("mine:")
    assert message in error


def test_every_fault_of_a_config_is_named_at_once():
    error = config_error(lerning_rate=1, batch_size="64", warmup={"paris": 1})
    assert error.count("\n") == 3


def test_an_unknown_key_of_the_architecture_names_the_nearest(data, tmp_path):
    wrong = {**ARCHITECTURE, "vision": {**ARCHITECTURE["vision"], "dept": 2}}
    with pytest.raises(InputError, match=r"has no 'dept'; did you mean 'depth'\?"):
        train(data, tmp_path / "out", architecture=wrong)


def test_null_is_no_value_and_takes_a_table_away():
    values = read_recipe("sd3/grpo", ["kl=null", "reward=none"])
    assert values["kl"] is None
    assert values["reward"] == "none"
    assert read_recipe("sd3/grpo")["kl"]["beta"] > 0


def test_overrides_are_read_as_toml_and_what_is_not_toml_is_a_string(tmp_path):
    path = recipe(tmp_path / "mine.toml", "d", "o")
    values = read_recipe(
        path,
        [
            "epochs=2",
            "learning_rate = 1e-3",
            "calibrate=false",
            "output=somewhere/else",
            'name="7"',
            "warmup.pairs=12",
            "architecture.text.depth=3",
            "architecture.mean=[0.5, 0.5, 0.5]",
            "start=a=b",
        ],
    )
    assert (values["epochs"], values["learning_rate"], values["calibrate"]) == (2, 1e-3, False)
    assert (values["output"], values["name"], values["start"]) == ("somewhere/else", "7", "a=b")
    assert values["warmup"] == {"pairs": 12}
    assert values["architecture"]["text"] == {**ARCHITECTURE["text"], "depth": 3}
    assert values["batch_size"] == RUN["batch_size"]
    config = build(RewardModelConfig, {**values, "start": "nothing"})
    assert config.architecture.mean == (0.5, 0.5, 0.5)
    assert config.warmup.pairs == 12


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "'epochs': expected key=value"),
        ("=3", "'=3': expected key=value"),
        ("epochs.first=3", "epochs is a value, not a table"),
    ],
)
def test_an_override_that_sets_nothing_is_refused(tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        read_recipe(recipe(tmp_path / "mine.toml", "d", "o"), [override])


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match=r"did you mean 'tiny/preference'\? known: .*imagereward/preference"):
        read_recipe("tiny/preferences")


def test_a_recipe_that_is_no_toml_is_refused_by_name(tmp_path):
    (tmp_path / "bad.toml").write_text("epochs = = 2")
    with pytest.raises(InputError, match=r"bad\.toml cannot be read as TOML"):
        read_recipe(tmp_path / "bad.toml")


@pytest.mark.parametrize("objective", [None, "prefernce"])
def test_a_recipe_without_a_known_objective_is_refused(tmp_path, objective):
    path = recipe(tmp_path / "mine.toml", "d", "o", objective=objective or "")
    with pytest.raises(InputError, match="known: preference"):
        run_recipe(path)


def test_every_shipped_recipe_builds():
    names = recipe_names()
    assert {"tiny/preference", "imagereward/preference"} <= set(names)
    preference = [name for name in names if read_recipe(name)["objective"] == "preference"]
    assert len(preference) == 3
    for name in preference:
        build(RewardModelConfig, read_recipe(name, ["output=out"]), name)


def test_the_full_size_recipe_has_the_published_setting():
    config = build(RewardModelConfig, read_recipe("imagereward/preference", ["output=out"]))
    found = (config.learning_rate, config.beta2, config.batch_size, config.epochs, config.fix_rate)
    assert found == (1e-5, 0.999, 64, 10, 0.7)
    assert (config.start, config.head, config.validations, config.weight_decay) == ("BLIP", "published", 4, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 7, "micro_batch": 2}, "batch_size=7: expected a multiple of micro_batch=2"),
        ({"batch_size": 2, "micro_batch": 4}, "batch_size=2: expected a multiple of micro_batch=4"),
        ({"warmup": {**WARMUP, "batch_size": 9}}, "batch_size=9: expected a multiple of micro_batch=4"),
        ({"trainer": {"loging_steps": 3}}, "loging_steps"),
        ({"trainer": {"lr_scheduler_type": "bumpy"}}, "bumpy"),
        ({"trainer": {"output_dir": "elsewhere"}}, "output_dir would replace keys of the recipe; set output"),
        ({"trainer": {"bf16": True, "learning_rate": 1e-3}}, "set precision, learning_rate instead"),
    ],
    ids=str,
)
def test_what_the_trainer_cannot_do_is_refused_before_anything_is_written(data, tmp_path, changes, message):
    values = {**RUN, "data": str(data), "output": str(tmp_path / "out"), **changes}
    with pytest.raises(InputError, match=message):
        train_reward_model(build(RewardModelConfig, values))
    assert not (tmp_path / "out").exists()  # so that the corrected config finds it free


# Data.


@pytest.fixture
def broken(data, tmp_path):
    """A copy of the data set to break: (directory, function that changes train.json's records)."""
    path = tmp_path / "data"
    shutil.copytree(data, path)

    def change(edit):
        records = json.loads((path / "train.json").read_text())
        (path / "train.json").write_text(json.dumps(edit(records) or records))

    return path, change


def set_field(index, key, value):
    def edit(records):
        records[index][key] = value

    return edit


def without(index, key):
    def edit(records):
        del records[index][key]

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_field(3, "ranking", [1]), r"generations but 1 ranks in ranking"),
        (set_field(3, "ranking", [2, 2, 2]), r"ranking: \[2, 2, 2\] prefers no image to another"),
        (set_field(3, "ranking", [1, 2.5, 3]), "ranking: expected a list of whole numbers"),
        (set_field(3, "ranking", [1, True, 3]), "ranking: expected a list of whole numbers"),
        (set_field(3, "ranking", [1, -100, 3]), "ranking: expected a list of whole numbers from 0 on"),
        (set_field(3, "ranking", "123"), "ranking: expected a list of whole numbers"),
        (set_field(3, "generations", "a.png"), "generations: expected a list of paths"),
        (set_field(3, "generations", [1, 2, 3]), "generations: expected a list of paths"),
        (set_field(3, "prompt", None), "prompt: expected a string"),
        (without(3, "ranking"), "has no ranking"),
    ],
)
def test_a_bad_record_is_refused_naming_file_id_and_field(broken, tmp_path, edit, message):
    path, change = broken
    change(lambda records: records[3].update(generations=list("abc"), ranking=[1, 2, 3]))
    change(edit)
    with pytest.raises(InputError, match=message) as error:
        train(path, tmp_path / "out")
    assert f"{path}/train.json, record 3 (id 'train-000003')" in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without(3, "id"), "record 3 has no id"),
        (lambda records: [*records, 7], "record 40: the record is a int, not an object"),
        (lambda records: {"all": records}, "holds a dict; expected a list"),
    ],
)
def test_a_record_without_an_id_is_refused_by_its_place(broken, edit, message):
    path, change = broken
    change(edit)
    with pytest.raises(InputError, match=message):
        read_rankings(path / "train.json")


def test_a_missing_or_empty_data_set_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"train\.json does not exist"):
        train(tmp_path, tmp_path / "out")
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(InputError, match=r"train\.json holds no rankings"):
        train(tmp_path, tmp_path / "out")
    (tmp_path / "train.json").write_text("{nothing")
    with pytest.raises(InputError, match=r"train\.json cannot be read as JSON"):
        train(tmp_path, tmp_path / "out")


def test_a_few_bad_images_are_skipped_counted_and_named_and_training_goes_on(broken, tmp_path, caplog):
    path, _ = broken
    records = json.loads((path / "train.json").read_text())
    three = next(record for record in records if len(record["generations"]) == 3)
    (path / three["generations"][0]).unlink()
    (path / records[-1]["generations"][1]).write_bytes(b"no picture")
    valid = json.loads((path / "valid.json").read_text())[1]["generations"][2]
    (path / valid).write_bytes((path / valid).read_bytes()[:200])
    total = sum(len(record["generations"]) for record in records)
    with caplog.at_level(logging.WARNING):
        train(path, tmp_path / "out", max_bad_share=0.1, updates=1)
    bad = {str(path / name) for name in (three["generations"][0], records[-1]["generations"][1], valid)}
    skipped = json.loads((tmp_path / "out/skipped.json").read_text())
    assert set(skipped) == bad
    assert "does not exist" in skipped[str(path / three["generations"][0])]
    assert f"train.json: 2 of {total} images cannot be used" in caplog.text
    assert all(name in caplog.text for name in bad)
    assert RM.load(tmp_path / "out", "cpu").config.kind == "ImageReward"


def test_more_bad_images_than_allowed_are_an_error(broken, tmp_path):
    path, _ = broken
    name = json.loads((path / "train.json").read_text())[0]["generations"][0]
    (path / name).unlink()
    with pytest.raises(InputError, match=r"1 of \d+ images cannot be used: .*does not exist; at most 0.50%"):
        train(path, tmp_path / "out", max_bad_share=0.005)


def test_a_prompt_that_is_left_without_a_pair_is_left_out(broken):
    path, change = broken
    two = next(i for i, record in enumerate(json.loads((path / "train.json").read_text())) if i % 2 == 0)
    change(lambda records: records[two].update(generations=records[two]["generations"][:2], ranking=[1, 2]))
    records = json.loads((path / "train.json").read_text())
    (path / records[two]["generations"][0]).unlink()
    images = RankedImages(path / "train.json", small_scorer("ImageReward").preprocess, 0.1)
    assert [record.id for record in images.prompts] == [
        record["id"] for record in records if record["id"] != records[two]["id"]
    ]


def test_a_bad_image_takes_its_own_rank_with_it(broken):
    path, change = broken
    change(
        lambda records: [
            dict(records[3], generations=records[3]["generations"][:2] * 2, ranking=[4, 3, 2, 1])
        ]
    )
    first, second = json.loads((path / "train.json").read_text())[0]["generations"][:2]
    (path / first).unlink()
    images = RankedImages(path / "train.json", small_scorer("ImageReward").preprocess, 0.6)
    assert images[0]["ranking"] == (3, 1)
    assert len(images[0]["pixels"]) == 2
    assert images.prompts[0].generations == (path / second,) * 2
    assert list(images.skipped) == [str(path / first)]


def test_a_data_set_without_a_usable_pair_is_an_error(broken):
    path, change = broken
    change(lambda records: records[:1])
    for name in json.loads((path / "train.json").read_text())[0]["generations"]:
        (path / name).unlink()
    with pytest.raises(InputError, match="no prompt has a pair of usable images"):
        RankedImages(path / "train.json", small_scorer("ImageReward").preprocess, max_bad_share=1.0)


def test_a_warm_up_on_files_skips_bad_images_and_names_them(data, tmp_path):
    pairs = [{"text": f"number {index}", "image": f"{index}.png"} for index in range(8)]
    for record, picture in zip(pairs, pictures(8)):
        picture.save(tmp_path / record["image"])
    (tmp_path / "5.png").write_bytes(b"no picture")
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    stage = {**WARMUP, "data": str(tmp_path / "pairs.json"), "updates": 1, "batch_size": 4}
    train(data, tmp_path / "out", warmup=stage, updates=1, max_bad_share=0.2)
    assert list(json.loads((tmp_path / "out/skipped.json").read_text())) == [str(tmp_path / "5.png")]
    with pytest.raises(InputError, match="1 of 8 images cannot be used"):
        train(data, tmp_path / "strict", warmup=stage, max_bad_share=0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a"}]', "record 0 has no path of an image"),
        ('[{"text": 7, "image": "a.png"}]', "to be a string"),
        ("[]", "holds no pair"),
        ("[3]", "record 0: the record is a int, not an object"),
    ],
)
def test_a_bad_list_of_pairs_is_refused_by_name(data, tmp_path, text, message):
    (tmp_path / "pairs.json").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        train(data, tmp_path / "out", warmup={**WARMUP, "data": str(tmp_path / "pairs.json")})
    assert "pairs.json" in str(error.value)


def test_an_output_directory_that_holds_another_run_is_refused(run, data):
    output, _ = run
    before = weights(output)
    with pytest.raises(InputError, match=r"already holds another run; choose another output="):
        train(data, output, warmup=WARMUP)
    assert weights(output) == before


def test_an_output_directory_that_holds_anything_else_is_refused(data, tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match="already holds something else"):
        train(data, tmp_path)
    with pytest.raises(InputError, match=r"holds no run to resume: run\.json is missing"):
        train(data, tmp_path, resume=True)


def test_resuming_with_another_config_is_refused_naming_what_changed(run, data):
    output, _ = run
    with pytest.raises(
        InputError, match=r"another config: learning_rate was 0\.01, is 0\.5, seed was 3, is 4"
    ):
        train(data, output, warmup=WARMUP, resume=True, learning_rate=0.5, seed=4)


# Whole runs.


def test_the_output_loads_and_scores_as_the_returned_scorer_does(run):
    output, scorer = run
    loaded = RM.load(output, "cpu")
    images = pictures(4)
    assert loaded.score("a red square", images) == scorer.score("a red square", images)
    assert not any(value.requires_grad for value in scorer.parameters())
    assert not scorer.training
    assert loaded.name == scorer.name == "whole"


def test_every_checkpoint_is_a_directory_that_loads(run):
    output, _ = run
    found = sorted(output.glob("checkpoint-*"))
    assert len(found) == 2  # the best and the last
    for path in found:
        assert math.isfinite(RM.load(path, "cpu").score("a red square", pictures(1)[0]))


def test_there_are_four_validations_an_epoch_and_one_before_the_first(run):
    steps = [entry["step"] for entry in history(run[0])]
    assert steps == [0, *range(2, EPOCHS * UPDATES + 1, UPDATES // VALIDATIONS)]


def test_what_is_saved_is_the_checkpoint_of_lowest_validation_loss(data, tmp_path):
    records = json.loads((data / "train.json").read_text())
    (tmp_path / "data").mkdir()
    (tmp_path / "data/images").symlink_to(data / "images")
    for split, sign in {"train": 1, "valid": -1}.items():  # what it learns makes validation worse
        ranked = [
            {**record, "ranking": [5 + sign * rank for rank in record["ranking"]]} for record in records
        ]
        (tmp_path / f"data/{split}.json").write_text(json.dumps(ranked))
    output = tmp_path / "out"
    train(tmp_path / "data", output, learning_rate=1e-3)
    best = min(history(output)[1:], key=lambda entry: entry["eval_pair_loss"])["step"]
    last = EPOCHS * UPDATES
    assert best < last
    saved, state = RM.load(output, "cpu").state_dict(), RM.load(output / f"checkpoint-{best}").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in state.items())
    other = RM.load(output / f"checkpoint-{last}").state_dict()
    assert not all(torch.equal(saved[name], value) for name, value in other.items())


def test_scores_of_the_validation_images_have_mean_0_and_standard_deviation_1(run, data):
    scores, _ = scores_and_rankings(RM.load(run[0], "cpu"), data / "valid.json")
    pooled = np.concatenate(scores)
    assert abs(pooled.mean()) < 1e-3
    assert abs(pooled.std() - 1) < 1e-3


def test_the_history_holds_accuracy_loss_and_pairs_as_computed_from_the_checkpoints(run, data):
    output, _ = run
    entries = {entry["step"]: entry for entry in history(output)}
    for path in output.glob("checkpoint-*"):
        entry = entries[int(path.name.split("-")[1])]
        scores, rankings = scores_and_rankings(RM.load(path, "cpu"), data / "valid.json")
        assert entry["eval_accuracy"] == pytest.approx(pair_accuracy(scores, rankings))
        assert entry["eval_pair_loss"] == pytest.approx(loss_by_loops(scores, rankings), abs=1e-5)
        assert entry["eval_pairs"] == sum(len(pairs_of(ranking)) for ranking in rankings)
        assert entry["eval_spread"] == pytest.approx(np.concatenate(scores).std(ddof=1), rel=1e-4)


def test_the_learning_rate_follows_a_cosine_to_0(run):
    total = EPOCHS * UPDATES
    checked = []
    for path in run[0].glob("checkpoint-*"):
        step = int(path.name.split("-")[1])
        (rate,) = set(torch.load(path / "scheduler.pt", weights_only=True)["_last_lr"])
        assert rate == pytest.approx(RUN["learning_rate"] * (1 + math.cos(math.pi * step / total)) / 2)
        checked.append(step)
    assert total in checked  # where it is 0
    assert len(checked) == 2


def test_the_run_is_recorded_with_its_config(run, data):
    recorded = json.loads((run[0] / "run.json").read_text())
    assert {key: recorded[key] for key in ("data", "seed", "fix_rate")} == {
        "data": str(data),
        "seed": 3,
        "fix_rate": 0.0,
    }
    assert recorded["warmup"]["pairs"] == WARMUP["pairs"]
    assert json.loads((run[0] / "skipped.json").read_text()) == {}


def test_a_model_stored_in_half_precision_scores_as_the_returned_one_and_is_calibrated(data, tmp_path):
    scorer = train(data, tmp_path / "half", save_dtype="float16", updates=2)
    loaded = RM.load(tmp_path / "half", "cpu")
    assert loaded.score("a red square", pictures(4)) == scorer.score("a red square", pictures(4))
    pooled = np.concatenate(scores_and_rankings(loaded, data / "valid.json")[0])
    assert abs(pooled.mean()) < 1e-3
    assert abs(pooled.std() - 1) < 1e-3


def test_without_calibration_scores_stay_raw(data, tmp_path):
    scorer = train(data, tmp_path / "raw", calibrate=False, updates=1, name="Mine")
    assert (scorer.mean, scorer.std) == (0, 1)
    assert json.loads((tmp_path / "raw/config.json").read_text())["name"] == "Mine"


def test_micro_batches_add_up_to_the_batch(data, tmp_path, monkeypatch):
    # A micro-batch averages its own pairs, so the sum is exact where all prompts have equally many.
    path = tmp_path / "even"
    shutil.copytree(data, path)
    for split in ("train", "valid"):
        records = json.loads((path / f"{split}.json").read_text())
        for record in records:
            record.update(generations=record["generations"][:2], ranking=[1, 2])
        (path / f"{split}.json").write_text(json.dumps(records))
    monkeypatch.setattr(F, "dropout", lambda x, *_, **__: x)
    text = {**ARCHITECTURE["text"], "dropout": 0.0}
    changes = {
        "architecture": {**ARCHITECTURE, "text": text},
        "batch_size": 8,
        "updates": 1,
        "trainer": {"optim": "sgd"},  # its step is in proportion to the gradient
    }
    whole = train(path, tmp_path / "whole", micro_batch=8, **changes).state_dict()
    parts = train(path, tmp_path / "parts", micro_batch=2, **changes).state_dict()
    start = train(path, tmp_path / "start", micro_batch=8, **{**changes, "learning_rate": 1e-30}).state_dict()
    name = "blip.visual_encoder.blocks.0.attn.qkv.weight"
    assert float((whole[name] - start[name]).abs().max()) > 1e-5
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-6, rtol=1e-5, msg=name)


# Dead heads.


def test_a_dead_head_is_recognised(data, tmp_path):
    scorer = small_scorer("ImageReward")
    for value in scorer.mlp.parameters():
        value.zero_()  # from here nothing but the last bias gets a gradient, and that cancels in every margin
    scorer.save_pretrained(tmp_path / "dead")
    with pytest.raises(
        DeadHeadError, match=r"the head is dead: after 4 updates .* at the start it was 0"
    ) as error:
        train(data, tmp_path / "out", start=str(tmp_path / "dead"), dead_after=4)
    assert "0.69315" in str(error.value)


def test_a_head_whose_spread_stands_still_is_as_good_as_dead(data, tmp_path):
    start = str(start_directory("BLIP", tmp_path))
    with pytest.raises(DeadHeadError, match="the head is dead: after 2 updates"):
        train(data, tmp_path / "out", start=start, head="published", dead_after=2, learning_rate=1e-12)


def test_scores_that_are_no_numbers_stop_the_training_and_name_the_last_good_checkpoint(data, tmp_path):
    with pytest.raises(NonFiniteScoreError, match=r"updates the validation loss is (nan|inf)"):
        train(data, tmp_path / "out", learning_rate=1e30)


def test_a_head_from_the_published_start_that_grows_is_not_called_dead(data, tmp_path):
    start = str(start_directory("BLIP", tmp_path))
    settings = {"head": "published", "dead_after": 4, "epochs": 1, "learning_rate": 3e-4, "seed": 1}
    train(data, tmp_path / "out", start=start, **settings)
    entries = history(tmp_path / "out")
    late = [entry for entry in entries if entry["step"] >= 4]
    # By its loss alone it could not be told from a dead one.
    assert any(abs(entry["eval_pair_loss"] - math.log(2)) < 1e-3 for entry in late)
    assert entries[0]["eval_spread"] < 1e-3
    assert entries[-1]["eval_spread"] > 1.5 * entries[0]["eval_spread"]


# Interrupted runs.


@pytest.fixture
def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def kill_after(command, environment, checkpoint: Path, delay: float, finished: Path) -> None:
    """Start a training, and kill it `delay` seconds after this checkpoint appears."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while not checkpoint.exists():
            assert process.poll() is None, process.stdout.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(delay)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert not finished.exists(), "killed too late to say anything"


@pytest.mark.parametrize("stage", ["warmup", "rankings"])
def test_a_killed_training_resumes_to_the_same_weights_bit_for_bit(
    run, data, tmp_path, environment, chance, stage
):
    output = tmp_path / "out"
    path = recipe(tmp_path / "mine.toml", data, output, warmup=WARMUP, trainer={"disable_tqdm": True})
    step = chance.choice([1, 2, 3, 4] if stage == "warmup" else [2, 4, 6, 8, 10, 12, 14])
    directory = output / "warmup" if stage == "warmup" else output
    finished = output / "checkpoint-2" if stage == "warmup" else output / "model.safetensors"
    command = [sys.executable, TRAIN, path]
    delay = chance.uniform(0, 0.1)
    kill_after(command, environment, directory / f"checkpoint-{step}", delay, finished)
    run_recipe(path, ["resume=true"])
    assert weights(output) == weights(run[0]), f"killed after checkpoint-{step}"
    losses = [[entry["eval_pair_loss"] for entry in history(path)] for path in (output, run[0])]
    assert losses[0] == losses[1]


def test_a_checkpoint_that_was_being_written_is_passed_over(run, data, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(run[0], output)
    recorded = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps({**recorded, "output": str(output)}))
    torn = output / f"checkpoint-{EPOCHS * UPDATES + 2}"
    torn.mkdir()
    shutil.copy(output / "model.safetensors", torn)
    (torn / "trainer_state.json").write_text('{"best_gl')
    train(data, output, warmup=WARMUP, resume=True)
    assert weights(output) == weights(run[0])
    assert not torn.exists()


def test_a_run_stopped_before_its_first_checkpoint_begins_anew_whatever_was_drawn_since(run, data, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    recorded = json.loads((run[0] / "run.json").read_text())
    (output / "run.json").write_text(json.dumps({**recorded, "output": str(output)}))
    torch.manual_seed(99)
    train(data, output, warmup=WARMUP, resume=True)
    assert weights(output) == weights(run[0])


# Several processes.


def test_only_the_first_process_looks_whether_the_output_is_free(tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text("{}")  # as the first one, a moment earlier, may have written it
    monkeypatch.setenv("RANK", "1")
    assert check_run_directory(str(tmp_path), {"seed": 1}, resume=False) == tmp_path
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match="already holds another run"):
        check_run_directory(str(tmp_path), {"seed": 1}, resume=False)


def test_two_processes_train_one_model_and_validate_every_pair_once(data, tmp_path, environment):
    output = tmp_path / "out"
    path = recipe(
        tmp_path / "mine.toml",
        data,
        output,
        warmup={**WARMUP, "updates": 2, "rehearsal": 0},
        trainer={"disable_tqdm": True},
        batch_size=4,
        micro_batch=2,
        updates=4,
        validations=5,
        checkpointing="fairscale",
        fix_rate=0.5,
    )
    result = subprocess.run([*TWO_PROCESSES, TRAIN, path], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    files = {file.name for file in output.iterdir() if not file.name.startswith("checkpoint-")}
    written = {"model.safetensors", "config.json", "README.md", "history.json", "run.json"}
    expected = written | {"skipped.json", "warmup"}
    assert files == expected
    entries = {entry["step"]: entry for entry in history(output)}
    checkpoints = sorted(output.glob("checkpoint-*"))
    assert checkpoints
    for checkpoint in checkpoints:  # as many pairs, and the same accuracy, as one process counts
        entry = entries[int(checkpoint.name.split("-")[1])]
        scores, rankings = scores_and_rankings(RM.load(checkpoint, "cpu"), data / "valid.json")
        assert len(rankings) % 2 == 1
        assert entry["eval_pairs"] == sum(len(pairs_of(ranking)) for ranking in rankings)
        assert entry["eval_accuracy"] == pytest.approx(pair_accuracy(scores, rankings))
        assert entry["eval_pair_loss"] == pytest.approx(loss_by_loops(scores, rankings), abs=1e-5)
    pooled = np.concatenate(scores_and_rankings(RM.load(output, "cpu"), data / "valid.json")[0])
    assert abs(pooled.mean()) < 1e-3
    assert abs(pooled.std() - 1) < 1e-3


SHARDS = {
    "architecture": {**ARCHITECTURE, "text": {**ARCHITECTURE["text"], "dropout": 0.0}},
    "batch_size": 4,
    "micro_batch": 2,
    "epochs": 1,
    "validations": 5,
    "fix_rate": 0.5,
    "learning_rate": 1e-3,
    # AdamW divides by its moments: where the gradient is 0, as of a key's bias, rounding errors would count.
    "trainer": {"disable_tqdm": True, "adam_epsilon": 1e-3},
}


def without_dropout(path, overrides=()):
    """Run a recipe whose head drops nothing: otherwise each process draws what it drops."""
    forward = torch.nn.Dropout.forward
    torch.nn.Dropout.forward = lambda self, values: values
    try:
        run_recipe(path, overrides)
    finally:
        torch.nn.Dropout.forward = forward


def in_two(path, log, *overrides):
    ended = run_forked(without_dropout, path, overrides, log=log, ranks=2)
    assert ended.codes == [0, 0], ended.output


def check_close(one, two):
    """Two results have the same weights."""
    first, second = (load_file(each / "model.safetensors") for each in (one, two))
    assert first.keys() == second.keys()
    far = {name: (value - second[name]).abs().max().item() for name, value in first.items()}
    assert max(far.values()) < 1e-5, far


def test_two_processes_with_shards_learn_what_one_learns_and_go_on(data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    path = recipe(tmp_path / "mine.toml", data, two, **SHARDS, checkpointing="torch", sharding="full")
    without_dropout(path, [f"output={one}"])
    in_two(path, tmp_path / "log")
    for alone, together in zip(history(one), history(two), strict=True):
        assert together["eval_pair_loss"] == pytest.approx(alone["eval_pair_loss"], abs=1e-5)
        assert together["eval_pairs"] == alone["eval_pairs"]
    check_close(one, two)
    images = pictures(4)
    scores = [RM.load(each, "cpu").score("a red square", images) for each in (one, two)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    # As if it had ended before the last checkpoint: in two processes, and in one, which divides nothing.
    whole = weights(two)
    cut_short(two)
    in_two(path, tmp_path / "log", "resume=true")
    assert weights(two) == whole
    cut_short(two)
    without_dropout(path, ["resume=true"])
    check_close(one, two)


def cut_short(output):
    for each in ("model.safetensors", "history.json"):
        (output / each).unlink()
    shutil.rmtree(checkpoints(output)[-1])


# The command.


def error_of(capsys, monkeypatch, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["imagereward", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    return capsys.readouterr().err


def test_tune_list_prints_the_recipes_in_the_package():
    result = CliRunner().invoke(app, ["tune", "--list"])
    assert result.exit_code == 0
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert [name for name, _ in lines] == recipe_names()
    for name, summary in lines:
        assert summary.endswith("."), name


def test_tune_without_a_recipe_asks_which(capsys, monkeypatch):
    error = error_of(capsys, monkeypatch, "tune")
    assert error.startswith(f"imagereward: which recipe? known: {', '.join(recipe_names())}; ")
    assert "tiny/quick takes two minutes" in error


def test_tune_with_an_unknown_recipe_is_one_line(capsys, monkeypatch):
    error = error_of(capsys, monkeypatch, "tune", "tiny/preferense", "epochs=1")
    assert error.startswith(
        "imagereward: 'tiny/preferense' is no recipe and no file; did you mean 'tiny/preference'?"
    )
    assert error.count("\n") == 1


def test_tune_with_an_unknown_key_names_the_nearest(capsys, monkeypatch, tmp_path):
    output = tmp_path / "out"
    error = error_of(capsys, monkeypatch, "tune", "tiny/preference", f"output={output}", "epoch=1")
    assert "epoch is no key; did you mean 'epochs'?" in error
    assert not output.exists()


def test_tune_trains_by_the_command_line(data, tmp_path):
    path = recipe(tmp_path / "mine.toml", data, "overridden", trainer={"disable_tqdm": True})
    arguments = ["tune", path, f"output={tmp_path / 'out'}", "updates=1"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert RM.load(tmp_path / "out", "cpu").config.max_length == ARCHITECTURE["max_length"]


def test_shapes_writes_a_data_set_that_the_trainer_reads(tmp_path):
    out = tmp_path / "drawn"
    arguments = ["shapes", "--out", str(out), "--prompts", "10", "--images", "2", "--size", "16"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "8 train, 1 valid, 1 test prompts" in result.stdout
    images = RankedImages(out / "train.json", small_scorer("ImageReward").preprocess, max_bad_share=0.0)
    assert len(images) == 8


@pytest.mark.parametrize("missing", ["imagereward.tuning.config", "accelerate"])
def test_a_missing_library_is_one_line_that_names_the_extra(tmp_path, environment, missing):
    path = recipe(tmp_path / "mine.toml", tmp_path, tmp_path / "out")
    code = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['imagereward', 'tune', {path!r}];"
        "from imagereward.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("imagereward: training needs the extra 'train' (")
    assert "run python -m pip install '.[train]' in your clone" in result.stderr
    assert result.stderr.count("\n") == 1
