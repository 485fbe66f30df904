"""The worked examples of docs/extending.md, and what docs/objectives.md says, as they stand there."""

import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pipelines
import pytest
import tokenizers
import torch
from conftest import pictures
from diffusers import DDIMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from test_grpo import grpo_of, run, small
from test_refl import PROMPTS, brightness, plan_of, refl_of
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)

import imagereward as RM
from imagereward.errors import InputError
from imagereward.tuning import run_recipe, tune
from imagereward.tuning.config import build
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.data.seeding import noise_for_samples
from imagereward.tuning.evaluation.compare import compare
from imagereward.tuning.explain import explain
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.objectives import config_class
from imagereward.tuning.objectives.config import ObjectiveContext
from imagereward.tuning.objectives.grpo import KL
from imagereward.tuning.policy.policy import Policy
from imagereward.tuning.policy.snapshots import Snapshot
from imagereward.tuning.policy.trainable import LoRA
from imagereward.tuning.recipe import read_recipe, recipe_names
from imagereward.tuning.rewards.weighted import Rewards, open_rewards
from imagereward.tuning.rollouts.times import Times
from imagereward.tuning.rollouts.window import Window

ROOT = Path(__file__).parents[1]
FAMILY = "my_family:PixArt"
PAGE = (ROOT / "docs/extending.md").read_text()


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """The page's modules, to be imported."""
    found = re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL)
    assert [name for name, _ in found] == ["my_scorer", "my_family", "my_objective"]
    for name, text in found:
        assert len(text.splitlines()) < 60
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def tiny_qwen(directory):
    """A random Qwen2-VL of two layers, with a tokenizer of words, in a directory."""
    special = ["<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<unk>"]
    words = [
        *special,
        "yes",
        "no",
        "Does",
        "this",
        "image",
        "show",
        "Answer",
        "or",
        "a",
        "red",
        "cat",
        ":",
        "?",
    ]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: place for place, word in enumerate(words)}, "<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": special[:3]})
    fast.save_pretrained(directory)
    Qwen2VLImageProcessor(min_pixels=784, max_pixels=7840).save_pretrained(directory)
    text = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    torch.manual_seed(0)
    config = Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=0, vision_start_token_id=1)
    Qwen2VLForConditionalGeneration(config).save_pretrained(directory)
    return str(directory)


def test_the_worked_scorer_scores_ragged_images_everywhere(examples, monkeypatch):
    import my_scorer

    made = my_scorer.Asked(tiny_qwen(examples / "qwen"))
    monkeypatch.setattr(my_scorer, "MODEL", None)
    monkeypatch.setattr(my_scorer, "make", lambda: made, raising=False)
    scorer, images = RM.load("my_scorer:make", "cpu"), pictures(3)
    shapes = {tuple(scorer.processor.load(image)["pixel_values"].shape) for image in images}
    assert len(shapes) > 1
    matrix = scorer.score_matrix(["a red cat", "a cat", "a"], images, batch_size=2)
    single = [[scorer.score(prompt, image) for image in images] for prompt in ("a red cat", "a cat", "a")]
    torch.testing.assert_close(torch.tensor(matrix), torch.tensor(single), atol=1e-5, rtol=0)
    assert len(set(matrix.flatten().tolist())) == 9
    rewards = open_rewards("my_scorer:make", "cpu")
    assert rewards(torch.rand(2, 3, 40, 64), ["a cat", "a"])[0].isfinite().all()


def pixart():
    torch.manual_seed(0)
    network = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=32,
        sample_size=8,
        patch_size=2,
        caption_channels=32,
        norm_num_groups=1,
        use_additional_conditions=False,
    )
    scheduler = DDIMScheduler(**{**pipelines.SCHEDULER, "prediction_type": "epsilon"})
    return PixArtSigmaPipeline(
        pipelines.tokenizer(), pipelines.t5(32), pipelines.autoencoder(), network, scheduler
    )


def test_the_worked_family_draws_as_diffusers_does_and_learns(examples):
    pipeline = pixart()
    denoiser = open_denoiser(pipeline, 16, family=FAMILY)
    policy = Policy(denoiser, denoiser.dynamics(4), 3.0)
    noise = noise_for_samples([0, 1], denoiser.autoencoder.shape, 0)
    ours = policy.sample(denoiser.encode(PROMPTS[:2]), noise)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS[:2],
        height=16,
        width=16,
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=noise,
        output_type="pt",
        clean_caption=False,
        use_resolution_binning=False,
    ).images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    before = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    few = {"steps": 4, "resolution": 16, "updates": 2, "batch_size": 4, "micro_batch": 2, "group": 2}
    tune(
        pipeline,
        PROMPTS,
        reward=brightness,
        output=examples / "out",
        recipe="sd15/grpo",
        family=FAMILY,
        **few,
        optimizer_steps=1,
        learning_rate=1e-3,
        precision="float32",
        evaluation={"held_out": "", "count": 1, "batch_size": 2},
    )
    after = pipeline.transformer.state_dict()
    assert sum(bool((value != before[name]).any()) for name, value in after.items()) > 0.5 * len(after)
    assert (examples / "out/model_index.json").is_file()
    judged = compare(
        pixart(),
        examples / "out",
        PROMPTS[:1],
        open_rewards(brightness),
        steps=4,
        resolution=16,
        family=FAMILY,
    )
    assert (judged.after["brightness"] != judged.before["brightness"]).all()


def test_the_command_runs_both_from_the_directory_they_lie_in(examples):
    (recipe,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert tomllib.loads(recipe)["objective"] == "my_objective:IPOConfig"
    pixart().save_pretrained(examples / "model")
    (examples / "prompts.txt").write_text("\n".join(PROMPTS))
    (examples / "ipo.toml").write_text(recipe)
    (examples / "my_reward.py").write_text(
        "def bright(pixels, prompts):\n    return pixels.mean((1, 2, 3))\n"
    )
    overrides = [
        *("model=model", f"family={FAMILY}", "output=out", "reward=my_reward:bright", "resolution=16"),
        *("steps=4", "updates=2", "batch_size=4", "micro_batch=2", "learning_rate=1e-3"),
        *("evaluation.count=1", "evaluation.batch_size=2", "checkpointing=false"),
    ]
    command = [Path(sys.executable).with_name("imagereward"), "tune", "ipo.toml", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=examples, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    history = json.loads((examples / "out/history.json").read_text())
    assert [entry["update"] for entry in history if "loss" in entry] == [1, 2]
    assert all(entry["gradient_norm"] > 0 for entry in history if "loss" in entry)
    first = next(entry for entry in history if "loss" in entry)
    assert (first["loss"], first["difference"]) == (pytest.approx(1), 0)  # at the slow copy
    assert any("slow" in path.name for path in (examples / "out").rglob("*.safetensors"))


@pytest.mark.parametrize("family", ["sd3", ":PixArt", "my_famly:PixArt", "json:", "json:Nothing"])
def test_a_family_that_is_not_there_is_named(family):
    with pytest.raises(
        InputError, match=f"family='{family}': .*module:name.*none for StableDiffusionPipeline"
    ):
        open_denoiser(pixart(), 16, family=family)


@pytest.mark.parametrize(
    "objective",
    ["my_objectve:IPOConfig", "imagereward.tuning:Nothing", "json:", ":IPOConfig", "json:dumps"],
)
def test_an_objective_that_is_not_there_is_named(objective, tmp_path):
    (tmp_path / "mine.toml").write_text(f'objective = "{objective}"\n')
    with pytest.raises(InputError, match=rf"objective='{objective}'.*known: refl, grpo"):
        run_recipe(tmp_path / "mine.toml")


def test_an_objective_of_no_module_lists_those_that_are_known(tmp_path):
    with pytest.raises(InputError, match=r"objective='grp'; known: .*refl, grpo, sft"):
        run(tmp_path / "out", objective="grp")


# The page about objectives.

OBJECTIVES = (ROOT / "docs/objectives.md").read_text()
MIGRATING = (ROOT / "docs/migrating.md").read_text()


def test_every_recipe_that_the_pages_name_is_there_and_the_other_way_round():
    named = set(re.findall(r"`((?:sd|flux)\w*/\w+)`", OBJECTIVES + MIGRATING))
    assert named <= set(recipe_names())
    grpo = {name for name in recipe_names() if read_recipe(name)["objective"] == "grpo"}
    assert {name for name in grpo if not name.startswith("tiny/")} <= named


class Counted(torch.nn.Module):
    """A network that counts its forward passes, and the rows in them."""

    def __init__(self, network):
        super().__init__()
        self.network, self.count, self.rows = network, 0, 0

    def forward(self, *arguments, **options):
        self.count += 1
        self.rows += len(arguments[0] if arguments else options["hidden_states"])
        return self.network(*arguments, **options)


def passes(objective, policy):
    """Forward passes of an update, an image of a batch at a time."""
    policy.module = Counted(policy.module)
    count = 0
    for step in objective.minibatches(policy, plan_of(objective)):
        for batch in step:
            objective.loss(policy, batch)
            count += 1
    return policy.module.count


def test_an_image_costs_as_many_passes_as_the_page_says():
    T, W = 4, 2
    assert passes(grpo_of(batch_size=2), small()) == T + (T - 1)
    assert passes(grpo_of(batch_size=2, window=Window(size=W)), small()) == T + W
    policy = small(lora=LoRA(rank=2), base=True)
    with_kl = grpo_of(batch_size=2, window=Window(size=W), kl=KL(form="true", beta=0.1))
    tilted = {"tilted": (1.0, lambda pixels, prompts: torch.arange(len(pixels)).float())}
    with_kl.rewards = Rewards(tilted)
    assert passes(with_kl, policy) == T + 2 * W
    late = refl_of(gradient={"mode": "one", "first_step": 2, "last_step": 2}, batch_size=2)
    assert len(UpdatePlan(0, 2, 2).chunks) == 1
    assert passes(late, small("sd")) == 2 + 1


def rows_of(objective, policy, batch_size=2, parts=1):
    """Rows that go through the network in an update, an image or a pair of its."""
    counted = policy.module = Counted(policy.module)
    policy.snapshots.update({name: Snapshot(policy.denoiser.network) for name in objective.snapshots})
    steps = list(objective.minibatches(policy, UpdatePlan(0, batch_size, 2)))
    assert len(steps) == parts
    for batch in itertools.chain(*steps):
        objective.loss(policy, batch)
    return counted.rows / batch_size


T, n, G = 4, 2, 2
LEARNT = {  # forward passes of an image, of which the page says how many belong to which part
    "sft_online": ({}, T + n / G),
    "sft_online weighted": ({"samples": "weighted"}, T + n),
    "sft_online weighted, penalty": ({"samples": "weighted", "reference_weight": 0.1}, T + n + n),
    "dpo_online": ({"beta": 100.0}, T + 4 * n / G),
    "nft": ({"reference_weight": 0.0}, T + 2 * n),
    "nft penalty": ({"reference_weight": 0.1}, T + 2 * n + n),
    "awm": ({"reference_weight": 0.0, "average_weight": 0.0}, T + n),
    "awm penalties": ({"reference_weight": 0.1, "average_weight": 0.1}, T + n + 2 * n),
    "awm steps": (
        {"reference_weight": 0.0, "average_weight": 0.0, "optimizer_steps": 2, "batch_size": 4},
        T + n + n,
    ),
}


@pytest.mark.parametrize("which", LEARNT)
def test_an_image_that_is_learned_from_costs_as_many_passes_as_the_page_says(which, tmp_path):
    changes, expected = LEARNT[which]
    values = {"group": G, "batch_size": 2, "micro_batch": 2, "times": {"count": n, "draw": "uniform"}}
    files = {"model": "", "output": str(tmp_path), "prompts": ""}
    config = build(config_class(which.split()[0]), {**files, **values, "steps": T, **changes})
    policy = small()
    tilted = Rewards({"tilted": (1.0, lambda pixels, prompts: torch.arange(len(pixels)).float())})
    objective = config.make(ObjectiveContext(policy.denoiser, tilted, pipelines.rows("sd3"), tmp_path))
    assert rows_of(objective, policy, config.batch_size, config.optimizer_steps) == expected


def test_a_stored_pair_costs_as_many_passes_as_the_page_says(tmp_path):
    values = {"model": "", "output": "", "beta": 100.0, "times": {"count": n}}
    config = build(config_class("dpo"), {**values, "preferences": {"data": "shapes", "pairs": 2}})
    policy = small()
    objective = config.make(ObjectiveContext(policy.denoiser, None, [], tmp_path))
    assert rows_of(objective, policy) == 4 * n


def test_the_recipes_whose_passes_the_page_counts_have_such_numbers():
    nft, awm, grpo = (read_recipe(f"sd3/{name}") for name in ("nft", "awm", "grpo"))
    assert "`sd3/nft` takes 10 F + 9 (3 F + B)" in OBJECTIVES
    assert (nft["steps"], Times(**nft["times"]).passes(nft["steps"]), nft["guidance"]) == (10, 9, 1.0)
    assert nft["reference_weight"] > 0
    assert "`sd3/awm` 14 F + 6 (3 F + B)" in OBJECTIVES
    assert (awm["steps"], Times(**awm["times"]).passes(awm["steps"]), awm["guidance"]) == (14, 6, 1.0)
    assert min(awm["reference_weight"], awm["average_weight"]) > 0
    assert "`sd3/grpo`, with guidance and a KL penalty, 20 F + 9 (4 F + 2 B)" in OBJECTIVES
    assert (grpo["steps"], grpo["guidance"] > 1, "kl" in grpo, "window" in grpo) == (10, True, True, False)


# The page for those who come from another trainer.

# Of the other trainer, in the column of what is here.
OLD = {"train_batch_size", "train_cfg", "train_gradient_accumulation_steps"}
TOGETHER = {  # what a value needs beside it
    "gradient.draw": ["gradient.mode=suffix"],
    "kl.form": ["kl.beta=0.1"],
    "times.draw": ["times={count=1}"],
    "times.first": ["times.last=11"],
    "times.lowest": ["times={draw='uniform'}"],
}


def sections_of_migrating():
    """(recipes, right columns of the tables) of every section whose title names recipes."""
    for section in MIGRATING.split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        cells = re.findall(r"^\|.*\| (.*) \|$", body, re.MULTILINE)
        if recipes := re.findall(r"`(\w+/\w+)`", title):
            yield pytest.param(recipes, cells, id=title.split(":")[0])


@pytest.mark.parametrize(("recipes", "cells"), list(sections_of_migrating()))
def test_keys_that_options_are_translated_to_are_there_and_take_the_values(recipes, cells):
    keys = {name: keys_of(name) for name in recipes}
    known = set.union(*keys.values())
    known |= {key.split(".")[0] for key in known}  # tables
    named = [each for cell in cells for each in re.findall(r"`([a-z_0-9.]+)(?:=([^`]+))?`", cell)]
    named = [(key, value) for key, value in named if key not in OLD]
    assert len(named) > 5
    for key, value in named:
        assert key in known, key
        if value:
            name = next(
                name for name in recipes if key in keys[name] | {each.split(".")[0] for each in keys[name]}
            )
            merged = read_recipe(name, ["output=o", *TOGETHER.get(key, []), f"{key}={value}"])
            assert build(config_class(merged["objective"]), merged)


def keys_of(name):
    """The keys of a recipe's objective, with those of the tables that the recipe leaves out."""
    tables = {"grpo": ["kl.beta=0.1", "kl.form=true"], "dpo_online": ["refresh.every=40"]}
    more = ["lora.rank=1", *tables.get(read_recipe(name)["objective"], [])]
    return {key.name for key in explain(name, more)}
