"""Every recipe for a generator, or a part of one, runs: on pipelines of its family with random weights."""

import json

import pipelines
import pytest
from conftest import small_scorer
from safetensors.torch import load_file

from imagereward.tuning import run_recipe
from imagereward.tuning.config import read_recipe, recipe_names

REWARDED = ("refl", "grpo")
# Sizes and names of what recipes ask for, cut down to what runs in seconds.
SMALL = {
    "refl": ["steps=6", "gradient.first=3", "gradient.last=5", 'reward="test_refl:brightness"'],
    "grpo": ["steps=6", "group=2", "optimizer_steps=1", 'reward="test_refl:brightness"', "scoring.wait=0.0"],
    "sft": ["steps=6", "pairs.pairs=6"],
    "autoencoder": ["pairs=6"],
    "clip": ["pairs=6"],
}
PIPELINES = {name: name for name in pipelines.FAMILIES} | {"sd15": "sd", "tiny": "sd"}
FLOW = {f"tiny/{name}": "sd3" for name in ("flow", "grpo", "grpo_fast", "grpo_jpeg", "refl_flow")}
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
GENERATORS = [name for name, objective in OBJECTIVES.items() if objective in ("refl", "grpo", "sft")]
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
    records = [{"prompt": prompt, "image": "image.png", "mask": "mask.png"} for prompt in pipelines.PROMPTS]
    (directory / "rows.json").write_text(json.dumps(records))
    return directory


def family_of(name):
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
    if "window" in read_recipe(name):
        overrides += ["window.size=2", "window.first=0", "window.last=3"]
    if OBJECTIVES[name] in REWARDED:
        overrides.append(f"prompts={saved / 'rows.json'}")
    if OBJECTIVES[name] == "clip":
        overrides.append(f"tokenizer={saved / 'tokenizer'}")
    return overrides


def test_the_recipes_are_those_that_are_tested_here():
    assert len(GENERATORS) == 40
    assert len(PARTS) == 2
    assert len(recipe_names()) == len(GENERATORS) + len(PARTS) + 4  # and four of reward models


@pytest.mark.parametrize("name", GENERATORS)
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
