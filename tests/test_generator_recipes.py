"""Recipes for generators, or parts of them, on pipelines of their family with random weights.

Every recipe's objective is made. Those of ReFL and GRPO, and one recipe of every other objective, run for two
updates: the others of an objective differ in the family alone, of which `test_families.py` has all.
"""

import json

import pipelines
import pytest
import torch
from conftest import small_scorer
from safetensors.torch import load_file

from imagereward.tuning import run_recipe
from imagereward.tuning.config import build
from imagereward.tuning.explain import config_of, explain
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.objectives import OBJECTIVES as OF_GENERATORS
from imagereward.tuning.objectives.config import ObjectiveContext
from imagereward.tuning.recipe import read_recipe, recipe_names
from imagereward.tuning.rewards.weighted import open_rewards
from imagereward.tuning.rollouts.times import Times

DRAWN = ["steps=6", "group=2", "optimizer_steps=1", 'reward="test_refl:brightness"', "scoring.wait=0.0"]
# Sizes and names of what recipes ask for, cut down to what runs in seconds.
SMALL = {
    "refl": ["steps=6", "gradient.first_step=3", "gradient.last_step=5", 'reward="test_refl:brightness"'],
    "grpo": DRAWN,
    "sft": ["steps=6", "pairs.pairs=6"],
    "sft_online": [*DRAWN, "times.count=2"],
    "dpo": ["steps=6", "beta=1.0"],
    "dpo_online": [*DRAWN, "beta=1.0", "times.count=2"],
    "nft": [*DRAWN, "times.count=2"],
    "awm": [*DRAWN, "times.count=2", "times.last=4"],
    "autoencoder": ["pairs=6"],
    "clip": ["pairs=6"],
}
PIPELINES = {name: name for name in pipelines.FAMILIES} | {"sd15": "sd", "sd35_large": "sd3", "tiny": "sd"}
INPAINTING = {"tiny/inpaint_refl", "tiny/inpaint_grpo", "tiny/inpaint_dpo_online"}
ON_FLOWS = (
    *("flow", "grpo", "grpo_fast", "grpo_jpeg", "refl_flow"),
    *("dpo", "dpo_online", "sft_online", "nft", "awm"),
)
FLOW = {f"tiny/{name}": "sd3" for name in ON_FLOWS}
# SD3's last block asks nothing on behalf of the words, so that no gradient reaches these.
UNREACHED = {
    f"transformer_blocks.1.attn.{name}"
    for name in (
        "add_q_proj.weight",
        "add_q_proj.bias",
        "norm_added_q.weight",
        "add_q_proj.lora_B.default.weight",
    )
}
OBJECTIVES = {name: read_recipe(name)["objective"] for name in recipe_names()}
GENERATORS = [name for name, objective in OBJECTIVES.items() if objective in OF_GENERATORS]
# One recipe of every objective that learns from samples.
RUN_ONCE = (
    *("sd15/dpo", "sd3/dpo_online", "sd15/sft", "sd15/sft_online", "sd3/nft", "sd3/awm"),
    *("sd_inpaint/dpo_online_region", "flux_fill/sft_online_region", "tiny/inpaint_dpo_online"),
)
RUN = [name for name in GENERATORS if OBJECTIVES[name] in ("refl", "grpo") or name in (*RUN_ONCE, "tiny/sft")]
PARTS = [name for name, objective in OBJECTIVES.items() if objective in ("autoencoder", "clip")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Each family's pipeline, on disk."""
    directory = tmp_path_factory.mktemp("pipelines")
    for name, make in pipelines.FAMILIES.items():
        make().save_pretrained(directory / name)
    pipelines.tokenizer().save_pretrained(directory / "tokenizer")
    for name, picture in pipelines.pictures().items():
        picture.save(directory / f"{name}.png")
    pipelines.pictures(seed=1)["image"].save(directory / "other.png")
    shown = {"image": "image.png", "mask": "mask.png"}
    records = [{"prompt": prompt, **shown} for prompt in pipelines.PROMPTS]
    (directory / "rows.json").write_text(json.dumps(records))
    (directory / "targets.json").write_text(json.dumps([{**each, "target": "other.png"} for each in records]))
    pair = {"chosen": "image.png", "rejected": "other.png"}
    (directory / "preferences.json").write_text(json.dumps([{**each, **pair} for each in records]))
    return directory


@pytest.fixture(scope="module")
def denoisers(saved):
    """Each family's denoiser, at 16 pixels."""
    return {name: open_denoiser(saved / name, 16) for name in pipelines.FAMILIES}


def family_of(name):
    if name in INPAINTING:
        return "sd_inpaint"
    return FLOW.get(name) or PIPELINES[name.split("/")[0]]


def cut(name, saved, output):
    overrides = [f"output={output}", "updates=2", "batch_size=4", "save_every=2", *SMALL[OBJECTIVES[name]]]
    if name in GENERATORS:
        overrides += [
            f"model={saved / family_of(name)}",
            "resolution=16",
            "micro_batch=2",
            "precision=float32",
            "weight_decay=0.0",  # what moves has been learned
            "evaluation.held_out=",
            "evaluation.count=1",
            "evaluation.seeds=1",
            "evaluation.steps=2",
            "evaluation.batch_size=2",
        ]
    values = read_recipe(name)
    if "window" in values:
        overrides += ["window.size=2", "window.first=0", "window.last=3"]
    overrides += data_of(values, saved)
    if OBJECTIVES[name] == "clip":
        overrides.append(f"tokenizer={saved / 'tokenizer'}")
    return overrides


def data_of(values, saved):
    """Overrides that name the saved data in the place of a recipe's."""
    if "preferences" in values:
        return [f"preferences.data={saved / 'preferences.json'}"]
    if "pairs" in values and values["objective"] == "sft" and values["pairs"]["data"] != "shapes":
        return [f"pairs.data={saved / 'targets.json'}"]
    return [f"prompts={saved / 'rows.json'}"] if "prompts" in values else []


def test_the_recipes_are_those_that_are_tested_here():
    assert len(GENERATORS) == 111
    assert len(RUN) == 59
    assert {OBJECTIVES[name] for name in RUN} == set(OF_GENERATORS)
    assert len(PARTS) == 2
    assert len(recipe_names()) == len(GENERATORS) + len(PARTS) + 5  # and five of reward models


def test_every_family_has_a_recipe_of_every_objective():
    families = {"sd15", "sd_inpaint", "sdxl", "sd3", "flux", "flux_kontext", "flux_fill"}
    assert families <= {name.split("/")[0] for name in GENERATORS}
    for family in families:
        has = {OBJECTIVES[name] for name in GENERATORS if name.startswith(f"{family}/")}
        assert has == set(OF_GENERATORS), family


def test_recipes_have_the_published_numbers():
    dpo, on_flows, nft, awm = (read_recipe(name) for name in ("sd15/dpo", "sd3/dpo", "sd3/nft", "sd3/awm"))
    assert dpo["learning_rate"] == pytest.approx(1e-8 * dpo["batch_size"])
    assert "lora" not in dpo
    assert all(read_recipe(f"{name}/dpo")["beta"] == 5000 for name in ("sd15", "sd_inpaint", "sdxl"))
    assert all(read_recipe(f"{name}/dpo_online")["beta"] == 100 for name in ("sd3", "flux", "flux_fill"))
    assert on_flows["beta"] == 100
    for family, beta, sampler in (("flux_fill", 5000, "reference"), ("sd_inpaint", 5000, "current")):
        theirs = read_recipe(f"{family}/dpo_online_region_published")
        assert (theirs["beta"], theirs["sampler"]) == (beta, sampler)
        assert (theirs["group"], theirs["refresh"]["every"], theirs["learning_rate"]) == (4, 50, 1e-5)
    assert nft["batch_size"] == 48 * nft["group"]
    assert awm["batch_size"] == 24 * awm["group"]
    for values in (nft, awm):
        assert (values["learning_rate"], values["guidance"], values["group"]) == (3e-4, 1.0, 24)
        assert values["lora"] == {"rank": 32, "alpha": 64}
    times = [Times(**values["times"]) for values in (nft, awm)]
    assert [each.passes(values["steps"]) for each, values in zip(times, (nft, awm), strict=True)] == [9, 6]


@pytest.mark.parametrize("name", GENERATORS)
def test_a_recipes_objective_is_made(name, saved, denoisers, tmp_path):
    """With all that the recipe says, but for the data, the reward and the size of the images."""
    values = read_recipe(name)
    overrides = [*data_of(values, saved), f"output={tmp_path}", "resolution=16"]
    if values.get("reward"):
        overrides.append('reward="test_refl:brightness"')
    if values.get("pairs", values.get("preferences", {})).get("data") == "shapes":
        overrides += [f"{'pairs' if 'pairs' in values else 'preferences'}.pairs=2"]
    found = {key.name: key for key in explain(name, overrides)}
    assert found["model"].value == f'"{values["model"]}"'
    config = build(config_of(values["objective"], name), read_recipe(name, overrides), name)
    denoiser = denoisers[family_of(name)]
    rewards = open_rewards(config.reward) if config.reward else None
    rows = pipelines.rows(family_of(name))
    objective = config.make(ObjectiveContext(denoiser, rewards, rows, tmp_path))
    assert len(objective.prompts) > 0
    assert config.dynamics(denoiser).steps == values["steps"]


@pytest.mark.parametrize("name", RUN)
def test_a_generator_recipe_runs_and_moves_what_it_should(name, saved, tmp_path):
    tuned = run_recipe(name, cut(name, saved, tmp_path / "out"))
    before = type(tuned).from_pretrained(saved / family_of(name))
    lora = read_recipe(name).get("lora") is not None
    network = pipelines.network_of(tuned)
    moved = pipelines.moved(network, pipelines.network_of(before).state_dict())
    learners = pipelines.learners(network, lora)
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert len(moved) > 0
    assert moved <= learners
    assert learners - moved <= UNREACHED
    assert (tmp_path / "out" / ("pytorch_lora_weights.safetensors" if lora else "model_index.json")).is_file()


@pytest.mark.parametrize("name", PARTS)
def test_a_part_recipe_runs(name, saved, tmp_path):
    part = run_recipe(name, cut(name, saved, tmp_path / "out"))
    assert all(value.isfinite().all() for value in part.state_dict().values())
    assert (tmp_path / "out/config.json").is_file()
    assert (tmp_path / "out/model.safetensors").is_file() or list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.parametrize(("name", "prefix"), [("tiny/autoencoder", "vae."), ("tiny/clip", "text.")])
def test_the_averaged_weights_of_a_part_become_the_result(name, prefix, saved, tmp_path):
    part = run_recipe(name, [*cut(name, saved, tmp_path / "out"), "ema=0.9"])
    folder = tmp_path / "out/checkpoint-2/weights"
    average, last = (load_file(folder / f"{kind}.safetensors") for kind in ("ema", "learned"))
    (file,) = (tmp_path / "out").glob("*.safetensors")
    result = load_file(file)
    compared = [key for key in average if key.startswith(prefix)]
    assert len(compared) > 10
    assert any(not torch.equal(average[key], last[key]) for key in compared)
    for key in compared:
        own = key.removeprefix(prefix)
        assert torch.equal(average[key], result[own])
        assert torch.equal(average[key], part.state_dict()[own].cpu())


@pytest.mark.parametrize("kind", ["ImageReward", "CLIP"])  # tokens of images, and vectors
def test_a_text_encoder_learns_beside_any_scorers_tower(kind, saved, tmp_path):
    small_scorer(kind).save_pretrained(tmp_path / "tower")
    run_recipe("tiny/clip", [*cut("tiny/clip", saved, tmp_path / "out"), f"tower={tmp_path / 'tower'}"])
    kept = load_file(tmp_path / "out/checkpoint-2/weights/learned.safetensors")
    assert {name.split(".")[0] for name in kept} == {
        *("text", "text_projection", "log_scale"),
        *("queries", "norm", "look", "image_projection"),
    }


def test_an_autoencoders_kl_counts_late_and_rises(saved, tmp_path):
    overrides = [*cut("tiny/autoencoder", saved, tmp_path / "out"), "kl=50", "kl_from=1", "updates=4"]
    run_recipe("tiny/autoencoder", overrides)
    history = json.loads((tmp_path / "out/history.json").read_text())
    parts = [entry["loss"] - entry["error"] for entry in history]
    expected = [50 * risen / 500 * entry["kl"] for risen, entry in zip((0, 0, 1, 2), history, strict=True)]
    assert parts == pytest.approx(expected, abs=1e-6)
