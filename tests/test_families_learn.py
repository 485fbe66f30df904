"""Every family learns by every objective, in full and by LoRA: what should move does, and nothing else."""

import copy
import itertools
import json

import pipelines
import pytest
import torch
from PIL import Image
from test_grpo import noise_for, noise_table
from test_refl import brightness

from imagereward.tuning import tune

FEW = {
    **{"updates": 2, "batch_size": 4, "micro_batch": 2, "steps": 4, "resolution": 16, "save_every": 2},
    **{"learning_rate": 1e-3, "precision": "float32", "checkpointing": True},
    "weight_decay": 0.0,  # what moves has been learned
    "evaluation": {"held_out": "", "count": 1, "batch_size": 2, "seeds": 1, "steps": 2},
}
GRPO = {
    **{"recipe": "sd15/grpo", "group": 2, "optimizer_steps": 1, "guidance": 1.0, "kl": None, "ema": 0.0},
}
MODES = {
    "refl": {"recipe": "sd15/refl", "eta": 0.0, "ema": 0.0, "gradient": {"first": 2, "last": 3}},
    "grpo": GRPO,
    "grpo windowed": {**GRPO, "window": {"size": 1, "first": 0, "last": 2}, "guard": True},
    "sft": {"recipe": "tiny/flow", "ema": 0.0, "schedule": "constant", "warmup_updates": 0},
    "sft online": {"recipe": "tiny/sft_online", "group": 2},
    "dpo": {"recipe": "tiny/dpo"},
    "dpo online": {"recipe": "tiny/dpo_online", "group": 2},
    "nft": {"recipe": "tiny/nft", "group": 2, "reference_weight": 0.1},
    "awm": {"recipe": "tiny/awm", "group": 2, "average_weight": 1.0, "reference_weight": 0.1},
}
COMBINATIONS = list(itertools.product(MODES, (True, False)))  # of each family


def test_the_combinations_are_counted():
    assert len(pipelines.FAMILIES) * len(COMBINATIONS) == 126


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The path of a table whose records have the pictures of pairs and of preferences."""
    folder = tmp_path_factory.mktemp("pairs")
    for seed in range(3):
        for name, picture in pipelines.pictures(seed).items():
            picture.save(folder / f"{name}-{seed}.png")
        for name, level in (("target", 50), ("chosen", 220), ("rejected", 30)):
            Image.new("RGB", (16, 16), (level + seed,) * 3).save(folder / f"{name}-{seed}.png")
    names = ("image", "mask", "target", "chosen", "rejected")
    records = [
        {"prompt": prompt, **{name: f"{name}-{seed}.png" for name in names}}
        for seed, prompt in enumerate(pipelines.PROMPTS)
    ]
    (folder / "table.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder / "table.jsonl"


@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_the_family_learns_by_every_objective_in_full_and_by_lora(family, table, tmp_path):
    """The family's network is made once, and its weights are put back in between."""
    made = pipelines.FAMILIES[family]()
    start = copy.deepcopy({name: part.state_dict() for name, part in modules_of(made).items()})
    for mode, lora in COMBINATIONS:
        output, which = tmp_path / f"{mode}-{lora}", (mode, lora)
        tuned = learn(made, family, output, mode, {"rank": 2} if lora else None, table)
        network = pipelines.network_of(tuned)
        for part, module in modules_of(tuned).items():
            moved = pipelines.moved(module, start[part])
            learners = pipelines.learners(module, lora) if module is network else set()
            assert all(value.isfinite().all() for value in module.state_dict().values()), (which, part)
            assert bool(moved) == (module is network), (which, part)
            assert moved <= learners, (which, part)
            assert len(moved) >= 0.9 * len(learners), (which, part)
        history = json.loads((output / "history.json").read_text())
        assert [entry["update"] for entry in history if "loss" in entry] == [1, 2], which
        if lora:
            network.unload_lora()
        network.load_state_dict(start["unet" if "unet" in start else "transformer"])


def modules_of(pipeline):
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def learn(pipeline, family, output, mode, lora, table):
    changes = {**FEW, **MODES[mode], "lora": lora}
    if mode.startswith("grpo"):
        changes["noise"] = noise_table(noise_for(family))
    data = {"data": str(table), "cache": False}
    if mode == "sft":
        return tune(pipeline, output=output, **{**changes, "pairs": data})
    if mode == "dpo":
        return tune(pipeline, output=output, **{**changes, "preferences": data})
    return tune(pipeline, pipelines.rows(family), reward=brightness, output=output, **changes)
