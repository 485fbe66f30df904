"""What the fine-tuning benchmarks found, held to what they should show; their runs take minutes each."""

import json

import pytest
from PIL import Image
from test_launch import ROOT

from benchmarks.training import finetune, finetune_flow

RESULTS = ROOT / "benchmarks/results"
PICTURES = {finetune: "finetune.png", finetune_flow: "finetune-flow.png"}


def result(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def tuned():
    return {row["method"]: row for row in result("finetune")["rows"]}


@pytest.fixture(scope="module")
def flow():
    return {row["method"]: row for row in result("finetune-flow")["rows"]}


def test_refl_earns_half_a_deviation_and_draws_more_of_what_was_asked(tuned):
    refl = tuned["ReFL"]
    assert refl["reward in base deviations"] >= 0.5
    assert refl["reward low"] > 0
    assert refl["faithfulness low"] > 0
    assert refl["minutes"] <= 20


def test_checkpointing_keeps_a_third_of_activations_and_lora_hardly_any_moments():
    found = result("fits")
    plain, recomputed = (row["activations_gb"] for row in found["float32"])
    assert recomputed <= 0.35 * plain
    moments = {
        row["learns"]: row["moments_gb"]
        for row in found["rows"]
        if row["objective"] == "ReFL" and row["model"].startswith("SD 1.5")
    }
    assert moments["LoRA"] < 0.01 * moments["all"]


def test_a_scrambled_reward_teaches_no_faithfulness(tuned):
    assert tuned["ReFL, scrambled"]["faithfulness gained"] <= 0


def test_all_methods_are_on_one_table(tuned, flow):
    assert list(tuned) == ["base", "ReFL", "DRaFT-1", "AlignProp", "ReFL, scrambled", "best of 8"]
    samples = ["NFT", "AWM", "online DPO", "RAFT", "DPO on pairs", "NFT, scrambled", "online DPO, scrambled"]
    assert list(flow) == ["base", "ReFL", "GRPO", "GRPO-Fast", *samples, "GRPO, JPEG", "best of 8"]


@pytest.mark.parametrize(
    ("method", "reward"), [("GRPO", "reward"), ("GRPO-Fast", "reward"), ("GRPO, JPEG", "jpeg")]
)
def test_a_policy_gradient_earns_reward(flow, method, reward):
    found = flow[method]
    assert found[f"{reward} low"] > 0
    assert len(found[f"{reward} of runs"]) == 3
    assert all(gained > 0 for gained in found[f"{reward} of runs"])
    assert found["minutes"] <= 10


@pytest.mark.parametrize("method", ["NFT", "AWM", "online DPO"])
def test_learning_from_samples_earns_reward(flow, method):
    found = flow[method]
    assert found["reward low"] > 0
    assert len(found["reward of runs"]) == 3
    assert all(gained > 0 for gained in found["reward of runs"])
    assert found["minutes"] <= 12


@pytest.mark.parametrize("method", ["NFT", "online DPO"])
def test_scrambled_rewards_teach_less(flow, method):
    scrambled = flow[f"{method}, scrambled"]
    assert scrambled["reward gained"] < 0.75 * flow[method]["reward gained"]
    assert scrambled["faithfulness gained"] < 0.5 * flow[method]["faithfulness gained"]


def test_dpo_on_pairs_teaches_faithfulness_itself(flow):
    assert flow["DPO on pairs"]["faithfulness low"] > 0


@pytest.mark.parametrize("method", ["GRPO", "GRPO-Fast", "NFT", "AWM", "online DPO"])
def test_a_policy_gradient_keeps_to_the_prompts(flow, method):
    assert flow[method]["faithfulness gained"] >= -0.02


@pytest.mark.parametrize("method", ["ReFL", "GRPO", "online DPO"])
def test_tuning_an_inpainting_model_earns_reward_inside_the_mask(method):
    (found,) = [row for row in result("inpainting")["rows"] if row["method"] == method]
    assert found["region low"] > 0
    assert len(found["region of runs"]) == 3
    assert all(gained > 0 for gained in found["region of runs"])
    assert found["inside high"] > 0
    assert found["minutes"] <= 20


def test_refl_with_a_reward_for_preservation_moves_the_rest_less():
    (found,) = [row for row in result("inpainting")["rows"] if row["method"] == "ReFL"]
    assert found["outside high"] < 0
    assert found["outside"] <= 1.1 * found["floor"]


def test_a_judge_of_the_prompt_raises_faithfulness_and_of_another_prompt_does_not():
    rows = result("finetune-judge")["rows"]
    assert [row["run"] for row in rows if row["method"] == "ReFL"] == [1, 2, 3]
    for row in rows:
        found = row["measured"]["faithfulness"]
        assert found["low"] > 0 if row["method"] == "ReFL" else found["high"] < 0


def test_ten_prompts_cost_a_judge_little_more_than_one():
    found = result("judges-cpu")
    assert all(each["ten_over_one"] <= found["most_ratio"] for each in found["models"].values())


@pytest.mark.parametrize("benchmark", [finetune, finetune_flow])
def test_pictures_are_drawn_from_the_results(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "PICTURE", tmp_path / "picture.png")
    benchmark.draw()
    assert Image.open(tmp_path / "picture.png").size == Image.open(ROOT / "docs" / PICTURES[benchmark]).size
